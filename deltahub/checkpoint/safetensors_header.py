"""The header of a safetensors file in any store: its tensors, without their values.

The file starts with the header's length, 8 bytes, and the header, a JSON object; the values follow without a gap.

A backbone's file may hold tensors of any dtype. A delta's tensors are used in computations, so `require_usable` refuses others.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from deltahub.checkpoint.manifest import TensorEntry
from deltahub.errors import CheckpointError
from deltahub.files.atomic import regular
from deltahub.files.documents import parse

Read = Callable[[int, int], bytes]  # returns the bytes from the first position to before the second
LONGEST: Final = 100_000_000  # maximum bytes of a header in safetensors
_PREFIX: Final = 8
_WHOLE: Final = {int}  # the type of a size: bool is not
_LONGEST_NAME: Final = 1024  # maximum characters of a tensor's name
_MOST_SIZES: Final = 64  # maximum dimensions, as in torch
_F8: Final = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_BITS: Final = {  # bits per value
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "I8", "U8", *_F8), 8),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 16),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
}
_USABLE: Final = _BITS.keys() - {"F4", "F6_E2M3", "F6_E3M2", "U16", "U32", "U64", *_F8}  # torch cannot add U16
_PRUNED: Final = re.compile(
    r"(?!.*\.deltas\.).*\.lora_[ABE]"
)  # AdaLoRA's tensors in PEFT, which may have lost every direction of a module


def tensor_table(path: Path, longest: int = LONGEST) -> tuple[TensorEntry, ...]:
    """Read the names, dtypes and shapes in a safetensors file, sorted by name, without its values.

    Args:
        longest: maximum bytes of its header.

    Raises:
        CheckpointError: it is not a safetensors file.
    """
    with regular(path) as file:
        return table_of(file, str(path), longest)


def table_of(file: BinaryIO, file_name: str, longest: int = LONGEST) -> tuple[TensorEntry, ...]:
    """Read the tensor table of an open file from its start; its position changes.

    Args:
        file_name: the name of the file, for messages.
        longest: maximum bytes of its header.

    Raises:
        CheckpointError: it is not a safetensors file.
    """

    def read(start: int, end: int) -> bytes:
        file.seek(start)
        return file.read(end - start)

    return tensor_entries(read, file.seek(0, os.SEEK_END), file_name, longest)


def metadata_of(path: Path) -> dict[str, str]:
    """Read the texts that the header of a safetensors file holds beside its tensors, by name.

    Raises:
        CheckpointError: it is not a safetensors file.
    """
    with regular(path) as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        header, _ = _header(read, file.seek(0, os.SEEK_END), str(path), LONGEST)
    return dict(header.get("__metadata__", {}))


def usable_bytes(file: BinaryIO, file_name: str) -> tuple[bytes, tuple[TensorEntry, ...]]:
    """Read a whole open safetensors file of a delta, after checking its header: no memory is allocated before.

    Args:
        file_name: the name of the file, for messages.

    Returns:
        The bytes of the file, and its tensor table.

    Raises:
        CheckpointError: it is not a safetensors file, holds tensors that no delta has, or is larger than the memory.
    """
    table = table_of(file, file_name)
    require_usable(table, file_name)
    file.seek(0)
    try:
        return file.read(), table
    except MemoryError as error:
        msg = f"{file_name} is larger than the memory that is free. Load it on a larger machine."
        raise CheckpointError(msg) from error


def require_usable(entries: Iterable[TensorEntry], file_name: str) -> None:
    """Refuse a file without tensors, and tensors that no delta has: without values, or of fewer than 8 bits, a float of 8 bits, or an unknown dtype.

    Args:
        entries: the tensors of a delta.
        file_name: the name of their file, for messages.

    Raises:
        CheckpointError: there is such a tensor; the message names it.
    """
    entries = list(entries)
    if not entries:
        msg = f"{file_name} holds no tensor. Save the delta again."
        raise CheckpointError(msg)
    for entry in entries:
        if entry.dtype not in _USABLE:
            msg = (
                f"{file_name} holds {entry.name:.200} as {entry.dtype:.40}, which a delta is not computed in. Expected F32, BF16, F16 or F64: "
                "convert the tensors to one of them, and save the delta again."
            )
            raise CheckpointError(msg)
        if 0 in entry.shape and not may_be_empty(entry.name, entry.shape):
            msg = (
                f"{file_name} holds {entry.name:.200}, which is empty: its shape is {list(entry.shape)}. Save it again."
            )
            raise CheckpointError(msg)


def may_be_empty(name: str, shape: Iterable[int]) -> bool:
    """Return whether a tensor without values is a matrix of AdaLoRA at a module that it has pruned to rank 0."""
    return sorted(map(bool, shape)) == [False, True] and _PRUNED.fullmatch(name) is not None


def tensor_entries(read: Read, size: int, file_name: str, longest: int = LONGEST) -> tuple[TensorEntry, ...]:
    """Read the names, dtypes and shapes of a file's tensors, sorted by name.

    Args:
        read: reads a range of the file.
        size: the size of the file in bytes.
        file_name: the name of the file, for messages.
        longest: maximum bytes of its header.

    Raises:
        CheckpointError: it is not a safetensors file, or it is truncated.
    """
    header, end = _header(read, size, file_name, longest)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        places = [_place(name, tensors[name]) for name in sorted(tensors)]
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise _malformed(file_name, f"its header does not describe tensors ({error!r:.200})") from error
    position = 0
    for first, last in sorted(span for _, span in places):
        if first != position or last < first:
            raise _malformed(file_name, "its tensors do not follow each other")
        position = last
    if end + position != size:
        raise _malformed(file_name, f"expected {end + position} bytes, found {size}")
    return tuple(entry for entry, _ in places)


def _header(read: Read, size: int, file_name: str, longest: int) -> tuple[dict[str, Any], int]:
    """Read a file's header, and the position after it."""
    length = int.from_bytes(read(0, _PREFIX), "little") if size >= _PREFIX else size
    end = _PREFIX + length
    if length > longest:
        raise _malformed(file_name, f"its header has {length} bytes, and {longest} are read at most")
    if end > size:
        raise _malformed(file_name, "it is too short for its header")
    try:
        header = parse(head := read(_PREFIX, end))
    except ValueError as error:
        raise _malformed(file_name, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict) or not head.startswith(b"{"):
        raise _malformed(file_name, "its header is not a JSON object")
    if not _are_texts(header.get("__metadata__", {})):
        raise _malformed(file_name, "its metadata are not texts by name")
    return header, end


def _are_texts(metadata: object) -> bool:
    return isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())


def _place(name: str, entry: Mapping[str, Any]) -> tuple[TensorEntry, tuple[int, int]]:
    """Return a tensor and the position of its values, after comparing their length with its shape."""
    if len(name) > _LONGEST_NAME:
        msg = f"a name has {len(name)} characters, and {_LONGEST_NAME} is the limit"
        raise ValueError(msg)
    first, last = _sizes(entry["data_offsets"])
    if not isinstance(entry["dtype"], str):
        msg = f"{name} has the dtype {entry['dtype']!r:.80}"
        raise TypeError(msg)
    width = _BITS.get(entry["dtype"])  # None for a dtype of a later release of the format
    shape = _sizes(entry["shape"])
    values, bits = math.prod(shape), (last - first) * 8
    if values > bits if width is None else values * width != bits:
        # Shortened before it is printed: a product of sizes may have more digits than Python prints.
        msg = f"{name} has {min(values, 1 << 63)} values by its shape and {last - first} bytes by its place"
        raise ValueError(msg)
    return TensorEntry(name, entry["dtype"], shape), (first, last)


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not set(map(type, value)) <= _WHOLE or min(value, default=0) < 0:
        msg = f"{value!r:.80} is not a list of sizes"
        raise ValueError(msg)
    if len(value) > _MOST_SIZES:
        msg = f"a shape has {len(value)} sizes, and {_MOST_SIZES} is the limit"
        raise ValueError(msg)
    return tuple(value)


def _malformed(file_name: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{file_name} is not a safetensors file ({reason}). Fetch or save it again.")
