"""The lock file: references pinned to a source, a version and a digest.

    {"schema_version": 1,
     "deltas": {"acme/ner@champion": {"name": "acme/ner", "source": "team", "version": "v3", "digest": "sha256:..."}}}

It is sorted, with one fact per line, so that its changes are easy to review. With `DELTAHUB_LOCK` set to its path, pulls
and `from_finetuned` use exactly the pinned versions: a moved alias changes nothing, and a delta of the same name in another
source is never used instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import CheckpointError, ConfigError, IntegrityError, NotLockedError
from deltahub.files.atomic import staging, storage_errors, write_synced
from deltahub.files.documents import parse_checked
from deltahub.link import Link
from deltahub.reference import Digest, Reference, is_digest
from deltahub.sources.base import Resolved
from deltahub.stores.base import Progress

FILE: Final = "deltahub.lock"
VARIABLE: Final = "DELTAHUB_LOCK"
SCHEMA: Final = "lock.v1"


@dataclass(frozen=True)
class Pin:
    """The meaning of a reference.

    Attributes:
        name: ``"namespace/name"``.
        source: its registry.
        version: ``"v3"``.
        digest: the digest of its manifest.
    """

    name: str
    source: str
    version: str
    digest: Digest

    def __str__(self) -> str:
        return f"{self.source}:{self.name}@{self.version}"


@dataclass(frozen=True)
class Lock:
    """A lock file.

    Attributes:
        path: the path of the file, which need not exist.
        pins: pins by reference, as requested but without the source.
    """

    path: Path
    pins: Mapping[str, Pin]

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Read a lock file.

        Raises:
            CheckpointError: the file is not a valid lock file.
            StorageError: the file does not exist or may not be read.
        """
        with storage_errors("Reading the lock file", path, "read"):
            data = path.read_bytes()
        document, fault = parse_checked(data, SCHEMA)
        if fault:
            msg = f"{path} is not a valid lock file: {fault}. Restore it, or write it anew with `deltahub lock REF... -o {path}`."
            raise CheckpointError(msg)
        return cls(
            path, {key: Pin(**{**pin, "digest": Digest(pin["digest"])}) for key, pin in document["deltas"].items()}
        )

    def write(self) -> None:
        """Write the file atomically.

        Raises:
            StorageError: the folder is full or not writable.
        """
        deltas = {key: asdict(pin) for key, pin in self.pins.items()}
        text = json.dumps({"schema_version": 1, "deltas": deltas}, indent=2, sort_keys=True) + "\n"
        folder = self.path.absolute().parent
        with storage_errors("Writing the lock file", folder), staging(folder) as stage:
            write_synced(stage / "lock", text.encode())
            os.replace(stage / "lock", self.path)

    @property
    def digests(self) -> set[Digest]:
        """The digests of all pins."""
        return {pin.digest for pin in self.pins.values()}

    def find(self, reference: Reference | Link) -> Pin | None:
        """Return the pin of a reference: by the locked reference, or by its locked version or digest.

        Returns:
            None for a link, which has its own pin.

        Raises:
            NotLockedError: the reference is not in the lock file.
            ConfigError: the link has no pin.
        """
        if isinstance(reference, Link):
            _require_pin(reference, self)
            return None
        pins_of_name = [pin for pin in self.pins.values() if pin.name == reference.path]
        version = reference.version
        matches = [pin for key, pin in self.pins.items() if key == str(reference.anywhere())]
        if not matches:
            matches = [pin for pin in pins_of_name if version in (None, pin.version) or _starts(pin, version)]
        matches = [pin for pin in matches if reference.source in (None, pin.source)]
        if len(set(matches)) == 1:
            return matches[0]
        raise NotLockedError(str(reference), str(self.path), tuple(sorted(map(str, pins_of_name)) or sorted(self.pins)))


def _starts(pin: Pin, version: str | None) -> bool:
    return version is not None and is_digest(version) and pin.digest.startswith(version)


def active() -> Lock | None:
    """Read the lock file at `DELTAHUB_LOCK`, if it is set."""
    path = os.environ.get(VARIABLE)
    return Lock.read(Path(path).expanduser()) if path else None


def pin_of(resolved: Resolved) -> Pin:
    """Return the pin of a resolved reference, for a lock file."""
    exact = resolved.reference
    assert isinstance(exact, Reference)
    assert exact.source is not None
    assert exact.version is not None
    return Pin(exact.path, exact.source, exact.version, resolved.digest)


def _require_pin(link: Link, lock: Lock) -> None:
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
    pin: Pin, lock: Lock, look_up: Callable[[Reference], Resolved], cached: Callable[[Digest], Manifest | None]
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
        resolved = look_up(exact)
        if resolved.digest != pin.digest:
            remedy = (
                f"Ask who changed it; if the new content is right, lock it: deltahub lock --add {exact} -o {lock.path}"
            )
            raise IntegrityError(f"{exact}, locked in {lock.path},", pin.digest, resolved.digest, remedy)
        return resolved

    def fetch(entry: FileEntry, into: Path, progress: Progress | None) -> None:
        looked_up().fetch(entry, into, progress)

    manifest = cached(pin.digest)
    return Resolved(exact, pin.digest, manifest, fetch) if manifest else looked_up()
