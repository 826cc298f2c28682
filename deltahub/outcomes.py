"""What a push and a pull did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltahub.link import Link
from deltahub.manifest import Manifest
from deltahub.reference import Reference


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        reference: the delta, with its source and version.
        digest: of its manifest.
        new: whether the content is a new version.
        size: bytes of its files.
        tags: of the version, all of them.
    """

    reference: Reference
    digest: str
    new: bool
    size: int
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Pulled:
    """What a pull brought.

    Attributes:
        reference: the delta, with the source it came from and its version, or the link with its digest.
        digest: of its manifest.
        folder: where its checked files are.
        manifest: its manifest.
    """

    reference: Reference | Link
    digest: str
    folder: Path
    manifest: Manifest
