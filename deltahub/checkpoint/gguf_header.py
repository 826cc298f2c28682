"""The header of a GGUF file: its metadata and its tensors, without their values.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. A LoRA of llama.cpp is a file whose
`general.type` is ``adapter``. The values of the tensors follow the header in its order, each at a multiple of the alignment.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from deltahub.checkpoint.manifest import TensorEntry
from deltahub.errors import CheckpointError

MAGIC: Final = b"GGUF"
_LONGEST: Final = 16 << 20  # bytes of a header to read; an adapter repeats no vocabulary, so it has kilobytes
_MOST_SIZES: Final = 4  # dimensions of a tensor in GGUF
_LONGEST_NAME: Final = 63  # bytes of a tensor's name in llama.cpp
_ALIGNMENT: Final = 32  # bytes, unless the metadata has another
_CHUNK: Final = 64 << 10  # bytes to read at first
_MOST: Final = 50_000  # maximum number of tensors, of metadata keys, and of values in all lists together
_VERSIONS: Final = (2, 3)
_STRING: Final = 8
_ARRAY: Final = 9
_NUMBERS: Final = {kind: f"<{form}" for kind, form in zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True)}
_FLOATS: Final = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}
_INTEGERS: Final = {24: "I8", 25: "I16", 26: "I32", 27: "I64"}
_QUANTISED: Final = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0"}
_DTYPES: Final = {**_FLOATS, **_INTEGERS, **_QUANTISED}
# Values in a block, and its bytes, by number of the dtype; in the others a value is a block.
_BLOCKS: Final = {
    0: (1, 4),
    1: (1, 2),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    30: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 40),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    29: (256, 56),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
    40: (64, 36),
    41: (128, 18),
}


@dataclass(frozen=True)
class Place:
    """The values of a tensor in a file.

    Attributes:
        kind: the number of the dtype in GGUF.
        start: the position of the first byte.
        size: their bytes.
    """

    kind: int
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file.

    Attributes:
        metadata: its keys and values.
        tensors: its tensors, sorted by name; sizes in the order of torch, the outermost first.
        layout: the number of the dtype and the stated position of each tensor, by name, in the order of the file.
        length: bytes of the header.
    """

    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    layout: dict[str, tuple[int, int]]
    length: int

    def places(self, size: int, file_name: str) -> dict[str, Place]:
        """Return the place of every tensor by name, checked as llama.cpp does: one after the other, and as large as stated.

        Args:
            size: the size of the file in bytes.
            file_name: the name of the file, for messages.

        Raises:
            CheckpointError: the tensors as stated are not the contents of the file.
        """
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _refused(file_name, f"its alignment is {alignment}, not a power of two")
        start = _padded(self.length, alignment)
        shapes = {entry.name: entry.shape for entry in self.tensors}
        places: dict[str, Place] = {}
        position = end = 0
        for name, (kind, stated) in self.layout.items():
            if stated != position:
                raise _refused(
                    file_name, f"{name} starts at {stated} of its values; expected {position}, by the shapes before it"
                )
            places[name] = Place(kind, start + position, _bytes_of(name, kind, shapes[name], file_name))
            end = position + places[name].size
            position = _padded(end, alignment)
        if not start + end <= size <= start + position:
            raise _refused(file_name, f"it has {size:,} bytes; expected {start + end:,}, by the shapes in its header")
        return places


def read_header(read: Callable[[int, int], bytes], size: int, file_name: str) -> Header:
    """Read the header of a GGUF file.

    Args:
        read: returns the bytes from the first position to before the second.
        size: the size of the file in bytes.
        file_name: the name of the file, for messages.

    Raises:
        CheckpointError: it is not a GGUF file of a known version, or it is truncated.
    """
    length = min(size, _CHUNK)
    while True:
        try:
            return _Cursor(read(0, length) if length else b"").header()
        except (EOFError, struct.error) as error:
            if length < min(size, _LONGEST):
                length = min(length * 8, size, _LONGEST)
                continue
            fault: Exception = error
        except (ValueError, KeyError, OverflowError) as error:
            fault = error
        raise _refused(file_name, str(fault)) from fault


def _refused(file_name: str, reason: str) -> CheckpointError:
    msg = f"{file_name} is not a GGUF file that can be read ({reason}). Fetch it again, or convert it with a newer llama.cpp."
    return CheckpointError(msg)


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _bytes_of(name: str, kind: int, shape: tuple[int, ...], file_name: str) -> int:
    """Compute the bytes of a tensor.

    Raises:
        CheckpointError: its dtype is not known, or a row is not a whole number of blocks.
    """
    if kind not in _BLOCKS:
        raise _refused(file_name, f"{name} has the dtype {kind}, which is not known")
    values, size = _BLOCKS[kind]
    row = shape[-1] if shape else 1
    if row % values:
        raise _refused(
            file_name, f"a row of {name} has {row} values, not a multiple of the {values} in a block of its dtype"
        )
    return math.prod(shape) // values * size


class _Cursor:
    """A position in the first bytes of a file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.listed = 0  # values in lists so far

    def header(self) -> Header:
        if self._take(4) != MAGIC:
            msg = "it does not begin with GGUF"
            raise ValueError(msg)
        if (version := self._number("<I")) not in _VERSIONS:
            msg = f"its version is {version}, and 2 and 3 are read"
            raise ValueError(msg)
        tensors, keys = self._count("<Q"), self._count("<Q")
        metadata = dict(self._unique((self._text(), self._value(self._number("<I"))) for _ in range(keys)))
        described = dict(self._unique(self._tensor() for _ in range(tensors)))
        entries = [
            TensorEntry(name, _DTYPES.get(kind, f"GGML{kind}"), shape) for name, (kind, shape, _) in described.items()
        ]
        layout = {name: (kind, position) for name, (kind, _, position) in described.items()}
        return Header(metadata, tuple(sorted(entries, key=lambda entry: entry.name)), layout, self.at)

    @staticmethod
    def _unique(pairs: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        names: set[str] = set()
        for name, value in pairs:
            if name in names:
                msg = f"it has {name:.80} twice"
                raise ValueError(msg)
            names.add(name)
            yield name, value

    def _tensor(self) -> tuple[str, tuple[int, tuple[int, ...], int]]:
        """Return a tensor's name, and its dtype, shape and position."""
        name = self._text()
        if len(name.encode()) > _LONGEST_NAME:
            msg = f"the name {name:.80} is longer than {_LONGEST_NAME} bytes"
            raise ValueError(msg)
        if (sizes := self._number("<I")) > _MOST_SIZES:
            msg = f"{name} has {sizes} dimensions, and {_MOST_SIZES} is the limit"
            raise ValueError(msg)
        shape = tuple(reversed([self._number("<Q") for _ in range(sizes)]))
        if 0 in shape:
            msg = f"{name} is empty: its shape is {list(shape)}"
            raise ValueError(msg)
        kind, position = self._number("<I"), self._number("<Q")
        return name, (kind, shape, position)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            kind, count = self._number("<I"), self._count("<Q")
            if kind == _ARRAY:
                msg = "a list in its metadata holds lists"
                raise ValueError(msg)
            self.listed = self._within(self.listed + count)
            return [self._value(kind) for _ in range(count)]
        value = self._number(_NUMBERS[kind])
        if not math.isfinite(value):
            msg = f"a number in its metadata is {value}"
            raise ValueError(msg)
        return value

    def _text(self) -> str:
        return self._take(self._number("<Q")).decode(errors="replace")

    def _count(self, form: str) -> int:
        return self._within(int(self._number(form)))

    @staticmethod
    def _within(count: int) -> int:
        if count > _MOST:
            msg = f"it counts {count} entries, and {_MOST} is the limit"
            raise ValueError(msg)
        return count

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            msg = "it ends within its header"
            raise EOFError(msg)
        self.at += length
        return self.data[self.at - length : self.at]
