"""Pins: the meaning of a reference in a lock file and at its source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import ConfigError, IntegrityError
from deltahub.hub.lockfile import Lock, Pin
from deltahub.link import Link
from deltahub.reference import Reference
from deltahub.sources.base import Resolved
from deltahub.stores.base import Progress


def pin_of(found: Resolved) -> Pin:
    """Return the pin of a resolved reference, for a lock file."""
    exact = found.reference
    assert isinstance(exact, Reference)
    assert exact.source is not None
    assert exact.version is not None
    return Pin(exact.path, exact.source, exact.version, found.digest)


def require_pin(link: Link, lock: Lock) -> None:
    """Check that a link is unambiguous, as a lock file in force requires.

    Raises:
        ConfigError: it has no pin.
    """
    if link.pin is None:
        msg = (
            f"{link} can change, and the lock file {lock.path} is in force, which pins names only. Write #sha256= and the "
            "digest of the delta at the end of the link, or unset DELTAHUB_LOCK."
        )
        raise ConfigError(msg)


def pinned(
    pin: Pin, lock: Lock, look_up: Callable[[Reference], Resolved], cached: Callable[[str], Manifest | None]
) -> Resolved:
    """Return the version pinned by a lock file; if it is cached, no source is asked.

    Args:
        look_up: finds the version at its source.
        cached: returns the cached manifest of a digest; None if it is not cached.

    Raises:
        IntegrityError: the content in its source differs.
    """
    exact = Reference.parse(str(pin))

    def looked_up() -> Resolved:
        found = look_up(exact)
        if found.digest != pin.digest:
            remedy = (
                f"Ask who changed it; if the new content is right, lock it: deltahub lock --add {exact} -o {lock.path}"
            )
            raise IntegrityError(f"{exact}, locked in {lock.path},", pin.digest, found.digest, remedy)
        return found

    def fetch(entry: FileEntry, into: Path, progress: Progress | None) -> None:
        looked_up().fetch(entry, into, progress)

    manifest = cached(pin.digest)
    return Resolved(exact, pin.digest, manifest, fetch) if manifest else looked_up()
