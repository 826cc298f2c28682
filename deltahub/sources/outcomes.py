"""Results of a push and of a pull."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deltahub.checkpoint.manifest import Manifest
from deltahub.link import Link
from deltahub.reference import Reference


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        reference: the delta, with its source and version.
        digest: the digest of its manifest.
        new: whether the content is a new version.
        size: the size of its files in bytes.
        tags: all tags of the version.
    """

    reference: Reference
    digest: str
    new: bool
    size: int
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Pulled:
    """The result of a pull.

    Attributes:
        reference: the delta, with its source and version, or the link with its digest.
        digest: the digest of its manifest.
        folder: the folder with its verified files.
        manifest: its manifest.
    """

    reference: Reference | Link
    digest: str
    folder: Path
    manifest: Manifest
