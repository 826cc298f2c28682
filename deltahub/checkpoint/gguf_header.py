"""The header of a GGUF file: its metadata and its tensors, without their values.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. A LoRA of llama.cpp is a file whose
`general.type` is ``adapter``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from deltahub.checkpoint.manifest import TensorEntry
from deltahub.errors import CheckpointError

MAGIC: Final = b"GGUF"
_LONGEST: Final = 16 << 20  # bytes of a header to read; an adapter repeats no vocabulary, so it has kilobytes
_MOST_SIZES: Final = 4  # dimensions of a tensor in GGUF
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


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file.

    Attributes:
        metadata: its keys and values.
        tensors: its tensors, sorted by name; sizes in the order of torch, the outermost first.
    """

    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]


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
        msg = f"{file_name} is not a GGUF file that can be read ({fault}). Fetch it again, or convert it with a newer llama.cpp."
        raise CheckpointError(msg) from fault


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
        metadata = {self._text(): self._value(self._number("<I")) for _ in range(keys)}
        return Header(metadata, tuple(sorted((self._tensor() for _ in range(tensors)), key=lambda it: it.name)))

    def _tensor(self) -> TensorEntry:
        name = self._text()
        if (sizes := self._number("<I")) > _MOST_SIZES:
            msg = f"{name:.80} has {sizes} dimensions, and {_MOST_SIZES} is the limit"
            raise ValueError(msg)
        shape = [self._number("<Q") for _ in range(sizes)]
        dtype = self._number("<I")
        self._number("<Q")  # the position of its values
        return TensorEntry(name, _DTYPES.get(dtype, f"GGML{dtype}"), tuple(reversed(shape)))

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
