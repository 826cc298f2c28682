"""A compare-and-swap on plain files, on every file system that renames: it asks for no lock, so it holds where locks do nothing.

Whoever wants to replace a document first *claims* it: a folder that holds the new bytes, synced, is renamed to the one place where
claims on that document lie, which fails while another claim lies there. Then the document is looked at once more, and the file
is renamed out of the claim over the document. Only who holds the claim can have changed the document in between.

A claim may be taken away at any time, since its file has a name that no other has: whoever lost it finds nothing to rename. So
the claim of a process that was killed is in nobody's way for longer than a moment, and one that was only slow overwrites nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deltahub.files import STAGE, staging, write_synced

SILENT: Final = 1.0  # seconds for which one claim may stand; its holder needs less than a thousandth
_PAUSE: Final = 0.002  # seconds between two looks at it
_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY})


def replace_claimed(
    target: Path,
    data: bytes,
    claim: Path,
    check: Callable[[], None],
    prepare: Callable[[list[Path]], None] = lambda _: None,
) -> None:
    """Write a document if it is still as it was; of those who do this at once, one does it.

    Args:
        target: the document; its folder is there. The caller syncs that folder.
        claim: where claims on it lie, on the same file system.
        check: raises if the document is not the one that is to be replaced.
        prepare: called with the new file and the folder that is about to be the claim, before others see them.
    """
    while True:
        check()
        with staging(claim.parent) as stage:
            name = uuid.uuid4().hex
            write_synced(stage / name, data)
            prepare([stage / name, stage])
            if replace_staged(target, stage, name, claim, check):
                return


def replace_staged(target: Path, stage: Path, name: str, claim: Path, check: Callable[[], None]) -> bool:
    """Make a claim of a folder whose file is written and synced, and rename the file over the document.

    Args:
        target: as `replace_claimed` takes it, and `claim` and `check`.
        stage: the folder, on the same file system; it is gone afterwards.
        name: of the file in it, which no other claim ever has.

    Returns:
        Whether it was done. It was not if somebody took the claim away.
    """
    _take(stage, claim, check)
    try:
        check()
        os.replace(claim / name, target)
    except FileNotFoundError:  # somebody took the claim away, after waiting long for it
        return False
    finally:
        with contextlib.suppress(OSError):  # else the next one waits for a moment
            (claim / name).unlink(missing_ok=True)
            claim.rmdir()
    return True


def _take(stage: Path, claim: Path, check: Callable[[], None]) -> None:
    """Rename `stage` to `claim`; wait while another one stands there, and take it away when it stands too long."""
    holder: list[str] = []
    since = 0.0
    while not _renamed(stage, claim):
        check()
        with contextlib.suppress(FileNotFoundError):
            found = [path.name for path in claim.iterdir()]
            if found != holder:
                holder, since = found, time.monotonic()
            elif time.monotonic() > since + SILENT:
                broken = claim.with_name(f"{STAGE}{uuid.uuid4().hex}")
                claim.rename(broken)
                shutil.rmtree(broken, ignore_errors=True)
                continue
        time.sleep(_PAUSE)


def _renamed(stage: Path, claim: Path) -> bool:
    with contextlib.suppress(OSError):  # an empty one is of somebody who is done
        claim.rmdir()
    try:
        stage.rename(claim)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True
