"""File permissions in a folder shared by several users: new files inherit them from its root.

This is like git's core.sharedRepository.

A group-writable root makes everything below it group-writable, whatever the umask of the user; a root that only its owner may read
keeps everything below it private. On a mount without such permissions (CIFS, NTFS, s3fs) nothing is set.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterable
from pathlib import Path


def make_root(root: Path) -> None:
    """Create the root of a registry or a cache; inside a folder shared by a group (setgid, group-writable), it is shared too."""
    fresh = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for path in reversed(fresh):
        with contextlib.suppress(OSError):
            above = path.parent.stat().st_mode
            if above & stat.S_ISGID and above & stat.S_IWGRP:
                inherit_permissions(path.parent, [path])


def make_folder(root: Path, folder: Path) -> None:
    """Create a folder below a root, with missing parents; each inherits the permissions of the root."""
    if folder.is_dir():
        return
    fresh = list(
        itertools.takewhile(lambda path: path.is_relative_to(root) and not path.exists(), (folder, *folder.parents))
    )
    folder.mkdir(parents=True, exist_ok=True)
    inherit_permissions(root, reversed(fresh))


def inherit_permissions(root: Path, paths: Iterable[Path], *, read_only: bool = False) -> None:
    """Give new files and folders the group and the permissions of a root, as far as the user and the file system allow.

    Args:
        read_only: whether to make the files read-only.
    """
    with contextlib.suppress(OSError):
        root_status = root.stat()
        for path in paths:
            _inherit_permissions(root_status, path, read_only=read_only)


def _inherit_permissions(root_status: os.stat_result, path: Path, *, read_only: bool) -> None:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        mode = root_status.st_mode & 0o777
        if root_status.st_mode & (stat.S_ISGID | stat.S_IWGRP):
            mode |= stat.S_ISGID  # so that files made in it by other users belong to the group too
    else:
        mode = root_status.st_mode & (0o444 if read_only else 0o666)
    if os.name != "nt" and status.st_gid != root_status.st_gid and root_status.st_mode & stat.S_IRWXG:
        with contextlib.suppress(OSError):  # before chmod: a change of the group may clear setgid
            os.chown(path, -1, root_status.st_gid)
    if stat.S_IMODE(status.st_mode) != mode:
        with contextlib.suppress(OSError):
            path.chmod(mode)
