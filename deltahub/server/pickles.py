"""Rejection of pickles, which run code when opened, unless a namespace allows them.

They are recognised by file extension and by content, whatever their name: pickles of any protocol, archives that contain one,
object arrays, and all of these compressed. Nothing is ever unpickled here: see `deltahub.server.pickle_opcodes`.

``.bin`` is the name of many formats, so such a file is judged by its content, but more strictly, since libraries unpickle it without
being asked: it may not even begin to import anything. An empty file is harmless under any name.
"""

from __future__ import annotations

import ast
import bz2
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Literal

from deltahub.server.errors import Refusal
from deltahub.server.pickle_opcodes import is_pickle
from deltahub.server.settings import Settings

HEAD: Final = 512  # bytes from the beginning of a file that clients send ahead
Read = Callable[[int, int], bytes]  # reads the bytes of a range, end exclusive
_ENDINGS: Final = re.compile(
    r"(?i)\.((pt|pth|pkl|pickle|ckpt|joblib|dill|pt2|p|mar|nemo)(\.(gz|bz2|xz|zst|lz4|br|zip))?|bin\.(gz|bz2|xz|zst|lz4|br|zip))$"
)
_BINARY: Final = re.compile(r"(?i)\.bin$")
_PROTOCOL: Final = re.compile(rb"\x80[\x02-\x05]")
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_MEMBER: Final = re.compile(r"(?i)(\.(pkl|pickle)|(^|/)(data/version|\.data/version|byteorder))$")
_ZIPPED: Final = re.compile(rb"[^\x00]{0,200}(data\.pkl|\.pickle|\.pkl|\.data/version|/byteorder)")
_ARRAY: Final = b"\x93NUMPY"
_LONGEST_HEADER: Final = 1 << 20  # bytes of the header of an array
_UNPACKED: Final = 1 << 20  # bytes of compressed content that are looked into
_BY_BYTE: Final = 64 << 10  # bytes that are unpacked one by one
_MOST_MEMBERS: Final = 20_000  # of an archive
_MOST_READ: Final = 256 << 20  # bytes of an archive to read at most
_MOST_UNPACKED: Final = 256 << 20  # bytes of all files of a compressed tar archive
# Compressed in ways that cannot be looked into here, by how they begin. Brotli has no mark: nothing opens it by its content.
_CLOSED: Final = (
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18|[\x22-\x28]\xb5\x2f\xfd"), "Zstandard"),
    (re.compile(rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18|\x03\x21\x4c\x18"), "LZ4"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "7-Zip"),
    (re.compile(rb"Rar!\x1a\x07"), "RAR"),
    (re.compile(rb"\x1f[\x9d\xa0]"), "compress"),
    (re.compile(rb"LZIP[\x00\x01]"), "lzip"),
    (re.compile(rb"\x89LZO\x00\r\n\x1a\n"), "LZO"),
    (re.compile(rb"\xff\x06\x00\x00sNaPpY"), "Snappy"),
)
_CLOSED_ENDING: Final = re.compile(r"(?i)\.(zst|zstd|br|lz4|lz|lzo|7z|rar|sz|snappy|Z)$")
# A method and window, and the bits that make both bytes a multiple of 31; none with a dictionary.
_ZLIB: Final = tuple(
    mark.to_bytes(2, "big") for mark in range(0x0800, 0x8000) if not mark % 31 and mark >> 8 & 15 == 8 and not mark & 32
)
_UNPACKERS: Final[tuple[tuple[bytes, Callable[[], Any]], ...]] = (
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ", lzma.LZMADecompressor),
    (b"\x5d\x00", lzma.LZMADecompressor),
    *((mark, zlib.decompressobj) for mark in _ZLIB),
)


class _Unclear(Exception):
    """The archive cannot be inspected."""


def looks_pickled(path: str, head: bytes) -> str | None:
    """Return why the name or first bytes of a file look like a pickle, as a clause; None if they do not.

    Args:
        path: its name in the repository.
        head: its first `HEAD` bytes, or all; empty if not known yet.
    """
    if ending := _ENDINGS.search(path):
        return f"its name ends in {ending[0]}"
    if ending := _CLOSED_ENDING.search(path):
        return f"its name ends in {ending[0]}, and this hub cannot look into what is compressed so"
    if _PROTOCOL.match(head):
        return "it begins as a pickle does"
    if head.startswith(_ZIP) and _ZIPPED.match(head, 30):  # position of the first file name in a zip
        return "it begins as a file of torch.save does"
    if head.startswith(_ARRAY) and _holds_objects(len(head), lambda start, end: head[start:end], is_complete=False):
        return "it is an array of pickled objects"
    return None


def pickle_within(size: int, read: Read, *, deep: bool = True, strict: bool = False) -> str | None:
    """Return why the content of a file is considered a pickle, as a clause; None if it is not.

    Args:
        size: bytes of the file.
        read: reads a range of the file.
        deep: whether to look into archives and compressed files.
        strict: whether bytes that would import something before they turn out to be no pickle count as one.
    """
    head = read(0, min(size, HEAD)) if size else b""
    if reason := looks_pickled("", head):
        return reason
    if is_pickle(size, read, strict=strict):
        return "its bytes are a pickle"
    if head.startswith(_ARRAY):
        return "it is an array of pickled objects" if _holds_objects(size, read) else None
    if way := next((name for mark, name in _CLOSED if mark.match(head)), None):
        return f"it is compressed by {way}, which this hub cannot look into"
    return _inside(head, size, read) if deep else None


def _is_pickled(data: bytes) -> bool:
    return pickle_within(len(data), lambda start, end: data[start:end], deep=False) is not None


def _inside(head: bytes, size: int, read: Read) -> str | None:
    """Return why an archive or a compressed file is taken for a pickle."""
    members: Callable[[Any], Iterator[tuple[str, bytes]]]
    try:
        content = head if _is_tar(head) else _unpacked(head, size, read)
        if head.startswith(_ZIP):
            members = _zip_members
        elif _is_tar(content):
            members = partial(_tar_members, mode="r:" if content is head else "r|*")
        else:
            return "what is compressed in it is a pickle" if _is_pickled(content) else None
        return _in_archive(members, size, read)
    except _Unclear as error:
        return f"it is an archive that cannot be looked into: {error}"


def refuse_pickle(settings: Settings, namespace: str, path: str, size: int, head: bytes = b"") -> None:
    """Check by its name and first bytes that a file may be uploaded.

    Args:
        settings: which namespaces accept pickles.
        size: bytes of the file.
        head: the known first bytes of the file.

    Raises:
        Refusal: it is a pickle, and the namespace does not accept pickles.
    """
    if size and not settings.allows_pickle(namespace):
        _refuse(namespace, path, looks_pickled(path, head))


def refuse_pickle_within(settings: Settings, namespace: str, path: str, size: int, read: Read) -> None:
    """Check by its name and whole content that a file may be in a version.

    Raises:
        Refusal: it is a pickle, and the namespace does not accept pickles.
    """
    if size and not settings.allows_pickle(namespace):
        strict = _BINARY.search(path) is not None
        _refuse(namespace, path, looks_pickled(path, b"") or pickle_within(size, read, strict=strict))


def _refuse(namespace: str, path: str, reason: str | None) -> None:
    if reason is None:
        return
    message = (
        f"{path} looks like a Python pickle ({reason}), which can run code when it is opened. "
        "Save the weights as safetensors, leave the file out, or ask the administrator of this hub to start it with "
        f"--allow-pickle {namespace}."
    )
    raise Refusal(403, message)


# ----- numpy arrays -----


def _holds_objects(size: int, read: Read, *, is_complete: bool = True) -> bool:
    """Return whether an array's dtype contains objects at any depth; an invalid numpy header counts as such.

    Args:
        is_complete: whether `read` covers the whole file; a truncated header is inconclusive.
    """
    start = read(0, min(size, 12))
    wide = start[6:7] > b"\x01"
    length = int.from_bytes(start[8 : 12 if wide else 10], "little")
    begin = 12 if wide else 10
    if begin + length > size or length > _LONGEST_HEADER:
        return is_complete and length > _LONGEST_HEADER
    try:
        header = ast.literal_eval(read(begin, begin + length).decode("latin-1").strip())
        return _is_object(header["descr"])
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        return is_complete


def _is_object(kind: Any) -> bool:
    """Return whether a dtype, as numpy writes it into headers, is or contains an object."""
    if isinstance(kind, str):
        return bool(re.search(r"(^|[|<>=,(\d\s])O|object", kind))
    if isinstance(kind, list):  # fields: name, type and possibly shape
        return any(_is_object(field[1]) for field in kind)
    return _is_object(kind[0])  # a type and its shape


# ----- archives -----


class _File(io.RawIOBase):
    """File object for the archive modules, with a limit on the bytes read."""

    def __init__(self, size: int, read: Read) -> None:
        self._size, self._read, self._at, self._remaining = size, read, 0, _MOST_READ

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._at + len(buffer))
        if self._at >= end:
            return 0
        self._remaining -= end - self._at
        if self._remaining < 0:
            msg = f"more than {_MOST_READ:,} bytes would have to be read"
            raise _Unclear(msg)
        data = self._read(self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _in_archive(members: Callable[[Any], Iterator[tuple[str, bytes]]], size: int, read: Read) -> str | None:
    """Return why an archive is considered a pickle, by the names and first bytes of its members."""
    with io.BufferedReader(_File(size, read), 1 << 16) as file:
        try:
            for number, (name, content) in enumerate(members(file)):
                if number >= _MOST_MEMBERS:
                    msg = f"it holds more than {_MOST_MEMBERS:,} files"
                    raise _Unclear(msg)
                if _MEMBER.search(name):
                    return f"it is an archive with the file {name[:100]!r}"
                if _is_pickled(content):
                    return f"{name[:100]!r} in it is a pickle"
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise _Unclear(str(error) or type(error).__name__) from error
        except (RuntimeError, ValueError, KeyError, IndexError, OverflowError, lzma.LZMAError) as error:
            raise _Unclear(str(error) or type(error).__name__) from error
    return None


def _zip_members(file: Any) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if _MEMBER.search(entry.filename) or entry.is_dir():
                yield entry.filename, b""
                continue
            with archive.open(entry) as member:
                yield entry.filename, member.read(_LOOKED_AT)


def _tar_members(file: Any, mode: Literal["r:", "r|*"]) -> Iterator[tuple[str, bytes]]:
    """Yield the names and first bytes of an archive's files; a compressed archive is read sequentially."""
    unpacked = 0
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for entry in archive:
            unpacked += entry.size
            if mode != "r:" and unpacked > _MOST_UNPACKED:
                msg = f"it holds more than {_MOST_UNPACKED:,} bytes"
                raise _Unclear(msg)
            member = archive.extractfile(entry) if entry.isreg() else None
            yield entry.name, member.read(_LOOKED_AT) if member else b""


_LOOKED_AT: Final = 64 << 10  # bytes of a member


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


# ----- compressed files -----


def _unpacked(head: bytes, size: int, read: Read) -> bytes:
    """Return the first bytes of what is in a compressed file, or in all of its parts one after another; none if it is not one.

    It is unpacked byte by byte at first: what comes out before a wrong checksum is what a reader of pickles sees.
    """
    make = next((make for magic, make in _UNPACKERS if head.startswith(magic)), None)
    if make is None:
        return b""
    packed, content = read(0, min(size, _UNPACKED)), bytearray()
    unpacker, at = make(), 0
    try:
        while at < len(packed) and len(content) < _UNPACKED:
            part = packed[at : at + 1] if at < _BY_BYTE else packed[at:]
            content += unpacker.decompress(part, _UNPACKED - len(content))
            at += len(part)
            if unpacker.eof:
                at -= len(unpacker.unused_data)
                while packed[at : at + 1] == b"\0":  # between the parts
                    at += 1
                unpacker = make()
    except (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError):
        return bytes(content)  # damaged from here on, or something else that begins so
    if len(content) < HEAD and len(packed) < size:
        msg = f"the first {_UNPACKED:,} bytes of it hold nothing"
        raise _Unclear(msg)
    return bytes(content)
