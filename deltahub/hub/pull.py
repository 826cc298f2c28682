"""Transfers of resolved deltas into the cache: files and deltas in parallel, every byte verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from deltahub.cache.cache import Cache, copy_delta, read_cached
from deltahub.checkpoint.manifest import FileEntry
from deltahub.errors import CheckpointError, DeltaHubError, Outcome, StorageError, outcome
from deltahub.files.atomic import storage_errors
from deltahub.reference import Digest
from deltahub.sources.base import Pulled, Resolved
from deltahub.stores.base import Progress
from deltahub.stores.threads import map_concurrently

T = TypeVar("T")
FILES_AT_ONCE: Final = 4  # files of a delta
_DELTAS_AT_ONCE: Final = 8


@dataclass(frozen=True)
class Transfer:
    """Progress callbacks, called from several threads.

    Attributes:
        expected: called with the number of bytes about to be fetched.
        progress: called with the number of bytes just fetched.
    """

    expected: Progress | None = None
    progress: Progress | None = None


def bring(
    resolved: Resolved,
    cache: Cache,
    *,
    force: bool = False,
    transfer: Transfer | None = None,
    at_once: int = 1,
) -> Pulled:
    """Return the folder of a delta in the cache; its files are fetched if it is not intact there.

    Args:
        force: fetch them even if it is.
        at_once: how many files are fetched at the same time.

    Raises:
        IntegrityError: its source is damaged.
        StorageError: the cache is full or not writable, or the source is out of reach.
    """
    callbacks = transfer or Transfer()

    def fetch(entry: FileEntry, into: Path) -> None:
        if callbacks.expected:
            callbacks.expected(entry.size)
        resolved.fetch(entry, into, callbacks.progress)

    folder = cache.get(resolved.digest, resolved.manifest, fetch, str(resolved.reference), fresh=force, at_once=at_once)
    return Pulled(resolved.reference, resolved.digest, folder, resolved.manifest)


def check_replaceable(to: Path, digest: Digest, is_kept: Callable[[Digest], bool]) -> None:
    """Refuse to overwrite a delta without another copy.

    Args:
        to: the folder to write to; `copy_out` checks any other content.
        digest: the digest of the delta to write.
        is_kept: whether the cache or a registry holds the delta of a digest.

    Raises:
        CheckpointError: the folder holds a delta never pushed, or changed since.
        StorageError: the folder cannot be read.
    """
    from deltahub.checkpoint.from_files import describe, holds_delta  # late: most pulls go to the cache

    with storage_errors("Looking at what would be overwritten", to, "read"):
        if not holds_delta(to):
            return
        try:
            present_digest = describe(to, allow_pickle=True).digest
            problem = (
                "" if present_digest == digest or is_kept(present_digest) else "which no registry and no cache holds"
            )
        except StorageError:
            raise
        except DeltaHubError as error:
            problem = f"which was changed since it was saved: {error}"
    if problem:
        msg = f"{to} holds a delta {problem}. Push it first, choose a new folder, or overwrite it with --force (force=True)."
        raise CheckpointError(msg)


def copy_out(pulled: Pulled, to: Path, again: Callable[[], Pulled]) -> Pulled:
    """Copy a delta out of the cache.

    Args:
        to: a folder that is new or holds a delta.
        again: brings it into the cache once more, in case another process removes it meanwhile.

    Raises:
        CheckpointError: files that do not belong to a delta would be overwritten.
    """
    read_cached(lambda: again().folder, lambda folder: copy_delta(pulled.manifest, folder, to))
    return replace(pulled, folder=to)


def several(pull: Callable[[T], Pulled], references: Sequence[T]) -> list[Outcome[Pulled]]:
    """Pull several deltas, some at the same time.

    Returns:
        The pulled delta or else the error, in the order of `references`; an error does not stop the others.
    """
    return list(map_concurrently(lambda reference: outcome(partial(pull, reference)), references, _DELTAS_AT_ONCE))
