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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from deltahub.errors import CheckpointError, NotLockedError
from deltahub.files.atomic import staging, storage_errors, write_synced
from deltahub.files.documents import parse, problem
from deltahub.reference import Reference, is_digest

FILE: Final = "deltahub.lock"
VARIABLE: Final = "DELTAHUB_LOCK"
SCHEMA: Final = "lock.v1"


@dataclass(frozen=True)
class Pin:
    """The meaning of one reference.

    Attributes:
        name: ``"namespace/name"``.
        source: its registry.
        version: ``"v3"``.
        digest: the digest of its manifest.
    """

    name: str
    source: str
    version: str
    digest: str

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
        try:
            document = parse(data)
            wrong = problem(document, SCHEMA)
        except ValueError as error:
            wrong = str(error)
        if wrong:
            msg = (
                f"{path} is no lock file: {wrong}. Restore it, or write it anew with `deltahub lock REF... -o {path}`."
            )
            raise CheckpointError(msg)
        return cls(path, {key: Pin(**pin) for key, pin in document["deltas"].items()})

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
    def digests(self) -> set[str]:
        """The digests of all pins."""
        return {pin.digest for pin in self.pins.values()}

    def find(self, reference: Reference) -> Pin:
        """Return the pin of a reference: by the locked reference, or by its locked version or digest.

        Raises:
            NotLockedError: the reference is not in the lock file.
        """
        known = [pin for pin in self.pins.values() if pin.name == reference.path]
        asked = reference.version
        found = [pin for key, pin in self.pins.items() if key == str(reference.anywhere())]
        if not found:
            found = [pin for pin in known if asked in (None, pin.version) or _starts(pin, asked)]
        found = [pin for pin in found if reference.source in (None, pin.source)]
        if len(set(found)) == 1:
            return found[0]
        raise NotLockedError(str(reference), str(self.path), tuple(sorted(map(str, known)) or sorted(self.pins)))


def _starts(pin: Pin, asked: str | None) -> bool:
    return asked is not None and is_digest(asked) and pin.digest.startswith(asked)


def active() -> Lock | None:
    """Read the lock file at `DELTAHUB_LOCK`, if it is set."""
    path = os.environ.get(VARIABLE)
    return Lock.read(Path(path).expanduser()) if path else None
