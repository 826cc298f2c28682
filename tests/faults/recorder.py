"""What a program does to the files below a folder, step by step, as a disk sees it."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from deltahub.files import durable
from tests.faults.disk import Disk, Operation


class Recorder:
    """Writes down every change of files and every sync below `root` while they are really made.

    Args:
        root: an absolute path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[Operation] = []
        self.syncs = 0  # of the whole file system

    @contextmanager
    def recording(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Record what happens within."""
        with patch.context() as patched:
            for name, change in (("mkdir", Disk.mkdir), ("unlink", Disk.remove), ("rmdir", Disk.remove)):
                patched.setattr(os, name, self._one(getattr(os, name), change))
            for name, move in (("rename", Disk.rename), ("replace", Disk.rename), ("link", Disk.link)):
                patched.setattr(os, name, self._two(getattr(os, name), move))
            patched.setattr(os, "fsync", self._fsync(os.fsync))
            patched.setattr(durable, "syncfs", self._syncfs(durable.syncfs))
            patched.setattr(io, "open", self._open(io.open))
            yield

    def _inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path below the root; None if it is elsewhere."""
        folder = Path(f"/proc/self/fd/{dir_fd}").readlink() if dir_fd is not None else Path.cwd()
        target = folder / os.fspath(path)
        return str(target.relative_to(self.root)) if target.is_relative_to(self.root) else None

    def note(self, change: Callable[..., None], *arguments: Any) -> None:
        """Write down one step."""
        self.operations.append(lambda disk: change(disk, *arguments))

    def _one(self, call: Callable[..., Any], change: Callable[..., None]) -> Callable[..., Any]:
        @functools.wraps(call)
        def recorded(path: Any, *args: Any, dir_fd: int | None = None, **options: Any) -> Any:
            result = call(path, *args, dir_fd=dir_fd, **options)
            if (inside := self._inside(path, dir_fd)) is not None:
                self.note(change, inside)
            return result

        return recorded

    def _two(self, call: Callable[..., Any], change: Callable[..., None]) -> Callable[..., Any]:
        @functools.wraps(call)
        def recorded(old: Any, new: Any, **options: Any) -> Any:
            result = call(old, new, **options)
            if (inside := self._inside(old)) is not None:
                self.note(change, inside, self._inside(new))
            return result

        return recorded

    def _fsync(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def recorded(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if (inside := self._inside(path)) is not None:
                self.note(Disk.fsync, inside)

        return recorded  # the real one would only take time

    def _syncfs(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def recorded(descriptor: int) -> None:
            self.syncs += 1
            self.note(Disk.syncfs)

        return recorded

    def _open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            inside = None if isinstance(file, int) else self._inside(file)
            result = call(file, mode, *args, **options)
            if inside is None or mode in ("r", "rb"):
                return result
            assert mode in ("wb", "xb"), mode
            self.note(Disk.create, inside)
            return _Writer(result, inside, self)

        return opened


class _Writer:
    """A file whose bytes are written down too."""

    def __init__(self, file: Any, path: str, recorder: Recorder) -> None:
        self._file, self._path, self._recorder = file, path, recorder

    def write(self, data: Any) -> int:
        self._recorder.note(Disk.write, self._path, bytes(data))
        written: int = self._file.write(data)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
