"""The header of a safetensors file, read from wherever the file is: its tensors, without a value of them.

The file starts with the header's length, 8 bytes, and the header, a JSON object; the values follow without a gap.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from deltahub.errors import CheckpointError
from deltahub.manifest import TensorEntry
from deltahub.schema import parse

Read = Callable[[int, int], bytes]  # the bytes from the first to before the second
LONGEST: Final = 100_000_000  # bytes of a header, says safetensors
_PREFIX: Final = 8
_BITS: Final = {  # of one value
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 16),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
}


def tensor_table(path: Path) -> tuple[TensorEntry, ...]:
    """The names, dtypes and shapes in a safetensors file, sorted by name; no values are read.

    Raises:
        CheckpointError: it is not a safetensors file.
    """
    try:
        with path.open("rb") as file:

            def read(start: int, end: int) -> bytes:
                file.seek(start)
                return file.read(end - start)

            return tensor_entries(read, os.fstat(file.fileno()).st_size, str(path))
    except OSError as error:
        msg = f"{path} is not a safetensors file ({error}). Fetch or save the delta again."
        raise CheckpointError(msg) from error


def tensor_entries(read: Read, size: int, what: str, longest: int = LONGEST) -> tuple[TensorEntry, ...]:
    """The names, dtypes and shapes of a file's tensors, sorted by name.

    Args:
        read: reads a range of the file.
        size: of the file, in bytes.
        what: the file, for messages.
        longest: bytes that its header may have.

    Raises:
        CheckpointError: it is not a safetensors file, or it was cut.
    """
    length = int.from_bytes(read(0, _PREFIX), "little") if size >= _PREFIX else size
    end = _PREFIX + length
    if length > longest:
        raise _malformed(what, f"its header has {length} bytes, and {longest} are read at most")
    if end > size:
        raise _malformed(what, "it is too short for its header")
    try:
        header = parse(read(_PREFIX, end), unique=True)
    except ValueError as error:
        raise _malformed(what, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _malformed(what, "its header is no object")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        spans = sorted(_span(name, entry) for name, entry in tensors.items())
        found = tuple(
            TensorEntry(name, entry["dtype"], _sizes(entry["shape"])) for name, entry in sorted(tensors.items())
        )
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise _malformed(what, f"its header describes no tensors ({error!r})") from error
    position = 0
    for first, last in spans:
        if first != position or last < first:
            raise _malformed(what, "its tensors do not follow each other")
        position = last
    if end + position != size:
        raise _malformed(what, f"expected {end + position} bytes, found {size}")
    return found


def _span(name: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    """Where a tensor's values are, which is as long as its shape says."""
    first, last = _sizes(entry["data_offsets"])
    if not isinstance(entry["dtype"], str):
        msg = f"{name} has the dtype {entry['dtype']!r}"
        raise TypeError(msg)
    width = _BITS.get(entry["dtype"])  # a later release of the format may know more
    bits = math.prod(_sizes(entry["shape"])) * (width or 0)
    if width and bits != (last - first) * 8:
        msg = f"{name} has {bits // 8} bytes by its shape and {last - first} by its place"
        raise ValueError(msg)
    return first, last


def _sizes(found: object) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(size) is int and size >= 0 for size in found):
        msg = f"{found!r} is no list of sizes"
        raise ValueError(msg)
    return tuple(found)


def _malformed(what: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{what} is not a safetensors file ({reason}). Fetch or save it again.")
