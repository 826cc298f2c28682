"""The file format of a bundle: a tar archive, byte for byte the same whenever its content is.

    bundle-<sha256>.json              the deltas, and the digest and size of every object; named by its own digest
    objects/sha256/<2>/<62>           the objects, sorted

Any tar program can list and unpack it. Reading accepts only the layout that writing produces: each header is compared with the
only valid one at its position, which excludes foreign paths, links, devices and duplicate files.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from deltahub.errors import CheckpointError, IntegrityError
from deltahub.files.atomic import CHUNK
from deltahub.files.documents import canonical_json, parse_checked
from deltahub.reference import Digest
from deltahub.stores.base import object_key

SCHEMA: Final = "bundle.v1"
_INDEX: Final = re.compile(r"bundle-([0-9a-f]{64})\.json")
_MOST: Final = 64 << 20  # maximum bytes of an index
_REMEDY: Final = "Nothing was stored. Export it again where it came from."


@dataclass(frozen=True)
class Member:
    """One object in a bundle.

    Attributes:
        sha256: 64 hex digits.
        size: size in bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True, order=True)
class Signed:
    """One signature in a bundle.

    Attributes:
        digest: the digest of the signed manifest.
        key: the id of the signing key, 64 hex digits.
        signature: the signature's JSON as text.
    """

    digest: Digest
    key: str
    signature: str


def write(
    file: BinaryIO,
    deltas: list[Any],
    members: Iterable[Member],
    fetch: Callable[[Member], Path],
    signed: Iterable[Signed] = (),
) -> None:
    """Write a bundle.

    Args:
        deltas: the reference documents, as JSON.
        fetch: returns a file with the verified bytes of an object; the file is deleted afterwards.
        signed: the signatures of the deltas.
    """
    members = sorted(members, key=lambda member: member.sha256)
    objects = [{"sha256": member.sha256, "size": member.size} for member in members]
    document = {"schema_version": 1, "deltas": deltas, "objects": objects}
    if signatures := [asdict(entry) for entry in sorted(signed)]:
        document["signatures"] = signatures
    index = canonical_json(document)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        name = f"bundle-{hashlib.sha256(index).hexdigest()}.json"
        archive.addfile(_header(name, len(index)), io.BytesIO(index))
        for member in members:
            path = fetch(member)
            with path.open("rb") as data:
                archive.addfile(_header(object_key(member.sha256), member.size), data)
            path.unlink()


def unpack(path: Path, folder: Path) -> tuple[list[Any], dict[str, Member], list[Signed]]:
    """Check a bundle to the last byte and unpack its objects, each as a file named by its sha256.

    Args:
        folder: an empty folder.

    Returns:
        The reference documents as JSON, the objects by their sha256, and the signatures, not yet verified.

    Raises:
        IntegrityError: the file is not as `write` writes it.
        CheckpointError: a later deltahub wrote it.
    """
    with path.open("rb") as file:
        document = read_index(file, path)
        members = [Member(**entry) for entry in document["objects"]]
        if sorted({member.sha256 for member in members}) != [member.sha256 for member in members]:
            raise _damaged(path, "objects in order, each once", "another list of them")
        expected = _length([document["_size"], *(member.size for member in members)])
        if (size := path.stat().st_size) != expected:
            raise _damaged(path, f"{expected} bytes", f"{size} bytes")
        for member in members:
            _compare(file, path, _header(object_key(member.sha256), member.size))
            digest = hashlib.sha256()
            with (folder / member.sha256).open("xb") as copy:
                for chunk in _data(file, path, member.size):
                    digest.update(chunk)
                    copy.write(chunk)
            if digest.hexdigest() != member.sha256:
                raise _damaged(path, Digest.of_hex(member.sha256), Digest.of_hex(digest.hexdigest()))
        while chunk := file.read(CHUNK):
            if chunk.strip(b"\0"):
                raise _damaged(path, "nothing after the last file", "more bytes")
    signed = [Signed(**{**entry, "digest": Digest(entry["digest"])}) for entry in document.get("signatures", ())]
    return document["deltas"], {member.sha256: member for member in members}, signed


def read_index(file: BinaryIO, path: Path | str) -> dict[str, Any]:
    """Read and check the index at the start of a bundle: `deltas`, the reference documents, and `objects`.

    Args:
        path: the name of the bundle, for messages.

    Raises:
        IntegrityError: the index is not as `write` writes it.
        CheckpointError: a later deltahub wrote it.
    """
    try:
        info = tarfile.TarInfo.frombuf(_read(file, path, tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise _damaged(path, "a bundle", f"something else ({error})") from error
    named = _INDEX.fullmatch(info.name)
    if named is None or info.size > _MOST:
        raise _damaged(path, f"bundle-<sha256>.json of {_MOST} bytes at most", f"{info.name!r} of {info.size} bytes")
    file.seek(0)
    _compare(file, path, _header(info.name, info.size))
    data = b"".join(_data(file, path, info.size))
    if (digest := hashlib.sha256(data).hexdigest()) != named[1]:
        raise _damaged(path, Digest.of_hex(named[1]), Digest.of_hex(digest))
    document, wrong = parse_checked(data, SCHEMA)
    later = document.get("schema_version") if wrong and isinstance(document, dict) else None
    if isinstance(later, int) and later > 1:
        msg = f"The bundle {path} has schema_version {later}; this deltahub reads 1. Update deltahub."
        raise CheckpointError(msg)
    if wrong:
        raise _damaged(path, f"an index as schemas/{SCHEMA}.json describes it", wrong)
    return {**document, "_size": info.size}


def _header(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    return info


def _compare(file: BinaryIO, path: Path | str, header: tarfile.TarInfo) -> None:
    block = _read(file, path, tarfile.BLOCKSIZE)
    if block != header.tobuf(tarfile.GNU_FORMAT):
        raise _damaged(path, f"the file {header.name} of {header.size} bytes", _described(block))


def _described(header: bytes) -> str:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return "no file"
    kinds = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "link", tarfile.DIRTYPE: "folder"}
    kind = "file" if info.isreg() else kinds.get(info.type, "special file")
    return f"the {kind} {info.name!r} of {info.size} bytes, owner {info.uid}, mode {info.mode:o}"


def _data(file: BinaryIO, path: Path | str, size: int) -> Iterator[bytes]:
    for start in range(0, size, CHUNK):
        yield _read(file, path, min(CHUNK, size - start))
    if _read(file, path, -size % tarfile.BLOCKSIZE).strip(b"\0"):
        raise _damaged(path, "zeros after each file", "other bytes")


def _read(file: BinaryIO, path: Path | str, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise _damaged(path, f"{count} more bytes", f"{len(data)}")
    return data


def _length(sizes: Iterable[int]) -> int:
    """Compute the bytes of an archive with files of these sizes: a header each, whole blocks, two empty ones, a whole record."""
    blocks = sum(1 + -(-size // tarfile.BLOCKSIZE) for size in sizes) + 2
    return -(-blocks * tarfile.BLOCKSIZE // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _damaged(path: Path | str, expected: str, found: str) -> IntegrityError:
    return IntegrityError(f"The bundle {path}", expected, found, _REMEDY)
