"""Detection of pickles of any protocol without unpickling them.

Protocols 0 and 1 have no magic bytes, and any text begins with characters that are opcodes. So the opcodes are followed as
Python's unpickler would, by their lengths and stack effects: a text fails after a few characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

_MOST: Final = 100_000  # opcodes to follow; bytes still valid after so many are taken for a pickle
_FEWEST: Final = 3  # opcodes of a pickle without calls: shorter ones are harmless, and short texts look like them
_BLOCK: Final = 1 << 16
_NAME: Final = re.compile(r"[\w.]+(\[\w.]+)?")
_WHOLE: Final = re.compile(rb"\s*[+-]?\w+\s*")
_REAL: Final = re.compile(rb"\s*[+-]?[\w.]+([eE][+-]?\w+)?\s*")
_QUOTED: Final = re.compile(rb"""(['"]).*\1\s*""", re.DOTALL)
_ANY: Final = re.compile(rb".*", re.DOTALL)
# Opcode: pattern of its argument, a line.
_LINES: Final = {
    b"I": _WHOLE,
    b"L": _WHOLE,
    b"F": _REAL,
    b"S": _QUOTED,
    b"V": _ANY,
    b"P": _ANY,
    b"g": _WHOLE,
    b"p": _WHOLE,
}
# Opcode: bytes of its argument, values popped, values pushed.
_PLAIN: Final[dict[bytes, tuple[int, int, int]]] = {
    **dict.fromkeys((b"I", b"L", b"F", b"S", b"V", b"P", b"g", b"c"), (0, 0, 1)),
    b"p": (0, 1, 1),
    **dict.fromkeys((b"N", b"]", b"}", b")", b"\x88", b"\x89", b"\x8f", b"\x97"), (0, 0, 1)),
    **dict.fromkeys((b"K", b"h", b"\x82"), (1, 0, 1)),
    **dict.fromkeys((b"M", b"\x83"), (2, 0, 1)),
    **dict.fromkeys((b"J", b"j", b"\x84"), (4, 0, 1)),
    b"G": (8, 0, 1),
    **dict.fromkeys((b"Q", b"\x85", b"\x94", b"\x98"), (0, 1, 1)),
    b"q": (1, 1, 1),
    b"r": (4, 1, 1),
    **dict.fromkeys((b"a", b"\x86", b"\x93"), (0, 2, 1)),
    **dict.fromkeys((b"s", b"\x87"), (0, 3, 1)),
    b"2": (0, 1, 2),
    b"\x80": (1, 0, 0),
    b"\x95": (8, 0, 0),
}
# Opcode: bytes of its argument's length field.
_LONG: Final = {
    **dict.fromkeys((b"T", b"X", b"B", b"\x8b"), 4),
    **dict.fromkeys((b"U", b"C", b"\x8a", b"\x8c"), 1),
    **dict.fromkeys((b"\x8d", b"\x8e", b"\x96"), 8),
}
_CALLS: Final = {b"R": 2, b"\x81": 2, b"\x92": 3, b"b": 2}  # values popped
_IMPORTS: Final = {b"c", b"\x93", b"\x82", b"\x83", b"\x84"}
_KEEPS, _RECALLS = {b"p", b"q", b"r", b"\x94"}, {b"g", b"h", b"j"}  # stores to and loads from the memo
# Opcode that pops all values down to a mark, and the mark: values pushed.
_TO_MARK: Final = {b"t": 1, b"l": 1, b"d": 1, b"\x91": 1, b"0": 0, b"1": 0, b"e": 0, b"u": 0, b"\x90": 0}
_STOP: Final = b"."


class _End(Exception):
    """The bytes end, or are not a pickle."""


class _Bytes:
    """Sequential reader that fetches bytes in blocks."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self.at, self._size, self._read = 0, size, read
        self._from, self._block = 0, b""

    @property
    def over(self) -> bool:
        return self.at >= self._size

    def take(self, count: int) -> bytes:
        if not self._from <= self.at <= self.at + count <= self._from + len(self._block):
            if self.at + count > self._size:
                raise _End
            self._from = self.at
            self._block = self._read(self.at, min(self._size, self.at + max(count, _BLOCK)))
        start = self.at - self._from
        self.at += count
        return self._block[start : start + count]

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > self._size:
            raise _End

    def line(self) -> bytes:
        """Return the bytes before the next newline; of a long line only the first `_BLOCK` are needed."""
        start = b""
        while not self.over:
            block = self.take(min(_BLOCK, self._size - self.at))
            end = block.find(b"\n")
            start = start or (block if end < 0 else block[:end])
            if end >= 0:
                self.at -= len(block) - end - 1
                return start
        raise _End

    def name(self) -> None:
        """Skip a line that is the name of a module, or of an attribute.

        Raises:
            _End: it is not a valid name.
        """
        if not _NAME.fullmatch(self.line().decode(errors="replace").strip("\r")):
            raise _End


class _Machine:
    """Simulation of the pickle machine: stack sizes, and whether anything callable was imported.

    Args:
        source: the bytes, positioned after the opcode.

    Attributes:
        imported: whether anything was imported so far.
    """

    def __init__(self, source: _Bytes) -> None:
        self._source = source
        self._stack = [0]  # values above each mark; the first is the bottom of the stack
        self.imported = self._has_memo = False

    def restart(self) -> None:
        """Begin the next pickle after a STOP.

        Raises:
            _End: the previous one ended without a value.
        """
        self._take(1)
        self._stack = [0]

    def calls(self, opcode: bytes) -> bool:
        """Execute one opcode; return whether it calls an imported object.

        Raises:
            _End: the opcode is not valid here.
        """
        if opcode == b"i":
            self._names()
        if opcode in (b"i", b"o"):
            self._to_mark()
        elif opcode in _CALLS:
            self._take(_CALLS[opcode])
        elif opcode in _LONG:
            self._source.skip(int.from_bytes(self._source.take(_LONG[opcode]), "little"))
            self._stack[-1] += 1
        elif opcode in _PLAIN:
            self._plain(opcode)
        else:
            self._at_mark(opcode)
        is_call = opcode in (b"i", b"o") or opcode in _CALLS
        self._stack[-1] += is_call
        return is_call and self.imported

    def _plain(self, opcode: bytes) -> None:
        length, takes, puts = _PLAIN[opcode]
        if opcode in _LINES and not _LINES[opcode].fullmatch(self._source.line()):
            raise _End
        if opcode == b"c":
            self._names()
        self._source.skip(length)
        self._take(takes)
        self._stack[-1] += puts
        self.imported = self.imported or opcode in _IMPORTS
        self._has_memo = self._has_memo or opcode in _KEEPS
        if opcode in _RECALLS and not self._has_memo:
            raise _End

    def _at_mark(self, opcode: bytes) -> None:
        if opcode == b"(":
            self._stack.append(0)
        elif opcode == b"0" and self._stack[-1]:
            self._take(1)
        elif opcode in _TO_MARK:
            self._to_mark()
            self._stack[-1] += _TO_MARK[opcode]
            if opcode in b"eu\x90":  # they add to the value before the mark
                self._take(1)
                self._stack[-1] += 1
        else:
            raise _End

    def _names(self) -> None:
        self._source.name()
        self._source.name()
        self.imported = True

    def _take(self, count: int) -> None:
        if self._stack[-1] < count:
            raise _End
        self._stack[-1] -= count

    def _to_mark(self) -> None:
        if len(self._stack) < 2:
            raise _End
        self._stack.pop()


def is_pickle(size: int, read: Callable[[int, int], bytes], *, strict: bool = False) -> bool:
    """Return whether the bytes are one or more pickles, or would call something when unpickled.

    Args:
        size: number of bytes.
        read: reads a range of the bytes.
        strict: whether an import is enough, and a complete pickle of any length.
    """
    source = _Bytes(size, read)
    machine = _Machine(source)
    steps, stopped = 0, False
    try:
        while not source.over:
            opcode = source.take(1)
            steps += 1
            stopped = opcode == _STOP
            if stopped:
                machine.restart()
            elif machine.calls(opcode) or steps > _MOST:
                return True
    except _End:
        return strict and machine.imported
    return (strict and machine.imported) or (stopped and steps >= (2 if strict else _FEWEST))
