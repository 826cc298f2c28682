"""Faults on demand: an error at any one of the steps in which bytes reach the disk."""

from __future__ import annotations

import errno
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from deltahub.files import durable
from tests.faults.disk import Tree, tree_of

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FORBIDDEN = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
INTERRUPT = KeyboardInterrupt()
KILL = SystemExit()

_STEPS = ("chmod", "fsync", "link", "mkdir", "rename", "replace", "utime")
_REMOVALS = ("rmdir", "unlink")
_READS = ("scandir", "stat")


class Faults:
    """Counts the steps in which something is written, and breaks the one that is asked for.

    Args:
        removals: also those in which something is removed. What cannot be removed stays, so a stage may be left behind.
        reads: also those in which something is read.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, removals: bool = False, reads: bool = False) -> None:
        self._patch = monkeypatch
        self._names = _STEPS + (_REMOVALS if removals else ()) + (_READS if reads else ())
        self._reads = reads
        self._count = 0
        self._breaks_at = 0
        self._error: BaseException = FULL
        self._look: Callable[[int], None] | None = None
        self._one_at_a_time = threading.RLock()  # a step is done before another is looked at

    def step(self) -> bool:
        """Whether the next step is the one to break."""
        self._count += 1
        if self._look:
            self._look(self._count)
        return self._count == self._breaks_at

    def fail(self) -> None:
        """Raise what was asked for, or die: by a signal or by ending at once; no handler runs, no buffer is flushed."""
        if self._error is KILL:
            if self._breaks_at % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(signal.SIGKILL)
        raise type(self._error)(*self._error.args)  # a new one, without what it was raised for before

    def kill(self, step: int, action: Callable[[], object]) -> None:
        """Run `action` in a child process that dies at one step, counted from 1."""
        child = os.fork()
        if child == 0:
            try:
                with self.at(step, KILL):
                    action()
            finally:
                os._exit(1)  # only if it got through: there was no such step
        assert abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) == signal.SIGKILL

    def killed(self, root: Path, action: Callable[[], object]) -> list[tuple[int, Tree]]:
        """Run `action` once, and return what is in `root` before each of its steps: what it leaves that is killed there.

        A process that is killed runs no handler and flushes no buffer; the bytes that it handed to the system stay. So what
        can be read in `root` at that moment is what it leaves, which `kill` proves (`test_steps.py`). Where nothing changed
        since the step before, that is left out.
        """
        found: list[tuple[int, Tree]] = []

        def look(step: int) -> None:
            tree = tree_of(root)
            if not found or found[-1][1] != tree:
                found.append((step, tree))

        with self.at(0, FULL):
            self._look = look
            try:
                action()
            finally:
                self._look = None
        return found

    def count(self, action: Callable[[], object]) -> int:
        """Run `action` unbroken and count its steps."""
        with self.at(0, FULL):
            action()
        return self._count

    @contextmanager
    def at(self, step: int, error: BaseException) -> Iterator[None]:
        """Raise `error` at one step, counted from 1."""
        self._count, self._breaks_at, self._error = 0, step, error
        with self._patch.context() as patch:
            for name in self._names:
                patch.setattr(os, name, self._breakable(getattr(os, name)))
            patch.setattr(durable, "syncfs", self._breakable(durable.syncfs))
            patch.setattr(io, "open", self._open(io.open))
            yield

    def each(self, count: int, *errors: BaseException) -> Iterator[tuple[str, int, BaseException]]:
        """Every step with every error, and a name for the case."""
        assert count > 0
        for error in errors:
            for step in range(1, count + 1):
                yield f"{type(error).__name__}-{step}", step, error

    def _breakable(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def breakable(*args: Any, **options: Any) -> Any:
            with self._one_at_a_time:
                if self.step():
                    self.fail()
                return call(*args, **options)

        return breakable

    def _open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            reads = "r" in mode and "+" not in mode
            if reads and not self._reads:
                return call(file, mode, *args, **options)
            if self.step():
                self.fail()
            return (_Reader if reads else _Writer)(call(file, mode, *args, **options), self)

        return opened


class _File:
    """A file that does what another one does, but for what breaks."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


class _Writer(_File):
    """A file whose writing can stop half way, as on a full disk."""

    def write(self, data: Any) -> int:
        half = len(data) // 2
        written: int = self._file.write(data[:half])
        if self._faults.step():
            self._faults.fail()
        return written + int(self._file.write(data[half:]))


class _Reader(_File):
    """A file that cannot be read to its end, as on a worn disk."""

    def read(self, *size: int) -> Any:
        if self._faults.step():
            self._faults.fail()
        return self._file.read(*size)

    def readinto(self, buffer: Any) -> int:
        if self._faults.step():
            self._faults.fail()
        read: int = self._file.readinto(buffer)
        return read

    def readable(self) -> bool:
        return True
