"""Rights in a folder that several users share: what is made in it takes after its root, as with git's core.sharedRepository.

A root that its group may write makes all below it writable for the group, whatever the umask of the user who makes it; a root
that only its owner may read keeps all below it private. On a mount without such rights (CIFS, NTFS, s3fs) nothing is set.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path


def make_root(root: Path) -> None:
    """Make the root of a registry or a cache; in a folder that a group shares (setgid, and the group may write) it is shared, too."""
    fresh = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for path in reversed(fresh):
        with contextlib.suppress(OSError):
            above = path.parent.stat().st_mode
            if above & stat.S_ISGID and above & stat.S_IWGRP:
                take_after(path.parent, [path])


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder below a root, and those above it that are missing; each takes after the root."""
    if folder.is_dir():
        return
    fresh = [path for path in (folder, *folder.parents) if path.is_relative_to(root) and not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    take_after(root, reversed(fresh))


def take_after(root: Path, paths: Iterable[Path], *, read_only: bool = False) -> None:
    """Give new files and folders the group and the rights of a root, as far as this user and the file system can.

    Args:
        read_only: nobody may write the files.
    """
    with contextlib.suppress(OSError):
        wanted = root.stat()
        for path in paths:
            _take_after(wanted, path, read_only=read_only)


def _take_after(wanted: os.stat_result, path: Path, *, read_only: bool) -> None:
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        mode = wanted.st_mode & 0o777
        if wanted.st_mode & (stat.S_ISGID | stat.S_IWGRP):
            mode |= stat.S_ISGID  # so that what others make in it is the group's, too
    else:
        mode = wanted.st_mode & (0o444 if read_only else 0o666)
    if os.name != "nt" and found.st_gid != wanted.st_gid and wanted.st_mode & stat.S_IRWXG:
        with contextlib.suppress(OSError):  # before the mode: a change of the group may take setgid away
            os.chown(path, -1, wanted.st_gid)
    if stat.S_IMODE(found.st_mode) != mode:
        with contextlib.suppress(OSError):
            path.chmod(mode)
