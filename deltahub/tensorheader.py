"""The header of a safetensors file, read from wherever the file is: its tensors, without a value of them.

The file starts with the header's length, 8 bytes, and the header, a JSON object; the values follow without a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from deltahub.errors import CheckpointError
from deltahub.manifest import TensorEntry
from deltahub.schema import parse

Read = Callable[[int, int], bytes]  # the bytes from the first to before the second
LONGEST: Final = 100_000_000  # bytes of a header, says safetensors
_PREFIX: Final = 8


def tensor_entries(read: Read, size: int, what: str) -> tuple[TensorEntry, ...]:
    """The names, dtypes and shapes of a file's tensors, sorted by name.

    Args:
        read: reads a range of the file.
        size: of the file, in bytes.
        what: the file, for messages.

    Raises:
        CheckpointError: it is not a safetensors file, or it was cut.
    """
    length = int.from_bytes(read(0, _PREFIX), "little") if size >= _PREFIX else LONGEST + 1
    end = _PREFIX + length
    if length > LONGEST or end > size:
        raise _malformed(what, "it is too short for its header")
    try:
        header = parse(read(_PREFIX, end))
    except ValueError as error:
        raise _malformed(what, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _malformed(what, "its header is no object")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        spans = sorted(_span(entry) for entry in tensors.values())
        found = tuple(
            TensorEntry(name, str(entry["dtype"]), _shape(entry["shape"])) for name, entry in sorted(tensors.items())
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(what, f"its header describes no tensors ({error!r})") from error
    position = 0
    for first, last in spans:
        if first != position or last < first:
            raise _malformed(what, "its tensors do not follow each other")
        position = last
    if end + position != size:
        raise _malformed(what, f"expected {end + position} bytes, found {size}")
    return found


def _span(entry: Mapping[str, Any]) -> tuple[int, int]:
    first, last = entry["data_offsets"]
    return int(first), int(last)


def _shape(sizes: list[Any]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in sizes)
    if min(shape, default=0) < 0:
        msg = f"the shape {sizes}"
        raise ValueError(msg)
    return shape


def _malformed(what: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{what} is not a safetensors file ({reason}). Fetch or save it again.")
