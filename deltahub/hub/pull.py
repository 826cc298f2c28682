"""Pulls into the cache: by the lock file in force, signatures checked, files and deltas in parallel, every byte verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from deltahub.cache.cache import Cache, copy_delta, read_cached
from deltahub.cache.remembered import CachedNames
from deltahub.checkpoint.manifest import FileEntry
from deltahub.errors import CheckpointError, DeltaHubError, Outcome, StorageError, outcome
from deltahub.files.atomic import storage_errors
from deltahub.hub.lockfile import Lock, Pin, active, pin_of, pinned
from deltahub.hub.resolver import Resolver
from deltahub.hub.trust import Policies
from deltahub.link import Link
from deltahub.reference import Digest, Reference
from deltahub.sources.base import Pulled, Resolved
from deltahub.sources.catalog import Choice
from deltahub.sources.registry import RegistrySource
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


class Puller:
    """Pulls of deltas into a cache.

    Args:
        cache: the cache.
        names: the meanings of references at their last pull.
        choice: the sources.
        policies: whose signature a delta needs.
        resolver: finds the version that a reference means.
    """

    def __init__(
        self, cache: Cache, names: CachedNames, choice: Choice, policies: Policies, resolver: Resolver
    ) -> None:
        self._cache, self._names, self._choice = cache, names, choice
        self._policies, self._resolver = policies, resolver

    def pull(
        self,
        reference: Reference | Link,
        *,
        to: Path | None = None,
        force: bool = False,
        transfer: Transfer | None = None,
        at_once: int = FILES_AT_ONCE,
        trust: Sequence[str] = (),
    ) -> Pulled:
        """Bring a delta into the cache: see `Hub.pull`."""
        lock = active()
        pin = lock.find(reference) if lock else None
        if lock and pin:
            resolved = self._pinned(pin, lock, fresh=force)
        else:
            progress = transfer.progress if transfer else None
            resolved = self._resolver.resolve(reference, fresh=force, progress=progress)
        ask = not pin or self._names.manifest(resolved.digest) is None
        self._policies.check(resolved, trust, chosen=reference.source is not None, ask=ask)
        if to and not force:
            check_replaceable(to, resolved.digest, self._is_kept)
        at_once = at_once if self._choice.needs_network(resolved.reference) else 1
        pulled = bring(resolved, self._cache, force=force, transfer=transfer, at_once=at_once)
        if not pin:
            self._resolver.remember(reference, resolved)
        return copy_out(pulled, to, lambda: bring(resolved, self._cache)) if to else pulled

    def pin(self, reference: Reference) -> Pin:
        """Return the current meaning of a reference: see `Hub.pin`."""
        resolved = self._resolver.resolve(reference, fresh=True)
        self._policies.check(resolved, chosen=reference.source is not None)
        return pin_of(resolved)

    def sync(self, lock: Lock, progress: Progress | None = None) -> list[Pulled]:
        """Bring all deltas of a lock file into the cache: see `Hub.sync`."""
        transfer = Transfer(progress)
        resolved = [self._pinned(pin, lock) for pin in dict.fromkeys(lock.pins.values())]
        for version in resolved:
            self._policies.check(version, ask=self._names.manifest(version.digest) is None)
        results = several(lambda version: bring(version, self._cache, transfer=transfer), resolved)
        for result in results:
            if isinstance(result, DeltaHubError):
                raise result
        return [result for result in results if isinstance(result, Pulled)]

    def _pinned(self, pin: Pin, lock: Lock, *, fresh: bool = False) -> Resolved:
        def look_up(exact: Reference) -> Resolved:
            return self._resolver.ask(exact, lambda source: source.resolve(exact))

        return pinned(pin, lock, look_up, (lambda _: None) if fresh else self._names.manifest)

    def _is_kept(self, digest: Digest) -> bool:
        """Check whether the cache or a registry on this machine holds a delta intact."""
        if self._cache.manifest(digest) is not None:
            return True
        return any(
            source.registry.holds(digest)
            for source in self._choice.on()
            if isinstance(source, RegistrySource) and not source.remote
        )


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
