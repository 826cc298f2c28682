"""Manifests: the exact content of a version of a delta.

A manifest lists the files of a checkpoint by digest, and the facts a reader needs before fetching them. Its own sha256
over canonical JSON is the delta's identity, so it holds nothing that changes between pushes: no time, author, tag or alias.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deltahub.errors import CheckpointError, IntegrityError
from deltahub.files.documents import canonical_json, parse_checked
from deltahub.files.sized_cache import SizedCache
from deltahub.reference import Digest

SCHEMA: Final = "manifest.v1"
SCHEMA_VERSION: Final = 1
DELTA: Final = "delta"
FILES: Final = "files"
DELTA_PART: Final = ".deltas."  # in a tensor's name after a ".": the rest is a parameter of the delta


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint.

    Attributes:
        path: name within the checkpoint folder; without a delta it may include folders, separated by "/".
        sha256: 64 hex digits.
        size: size in bytes.
    """

    path: str
    sha256: str
    size: int

    @classmethod
    def of(cls, path: str, data: bytes) -> FileEntry:
        """Return the entry of a file with these bytes."""
        return cls(path, hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint.

    Attributes:
        name: ``"<address>.deltas.<parameter>"``, or the name of an unfrozen backbone tensor.
        dtype: as in safetensors, e.g. ``"F32"``.
        shape: its sizes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """One immutable version of a delta.

    Attributes:
        config: the delta's config without the checkpoint's own bookkeeping; for kind ``"files"``, the detected format.
        files: every file, sorted by path.
        tensors: every tensor, sorted by name.
        parameters: numbers of values: ``total`` in the checkpoint, and ``delta``, those that are not the backbone's own.
        metrics: test results in the form of huggingface_hub's EvalResult.
        kind: ``"delta"``, or ``"files"`` for anything else in a hub: an adapter in another format, a backbone.
    """

    config: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorEntry, ...]
    parameters: Mapping[str, int]
    metrics: tuple[Mapping[str, Any], ...] = field(default=())
    kind: str = DELTA

    @property
    def weight(self) -> int:
        """The approximate memory use in bytes."""
        return 10_000 + 500 * (len(self.files) + len(self.tensors))

    def to_bytes(self) -> bytes:
        """Return the manifest as stored."""
        lists = {"files": [*map(vars, self.files)], "tensors": [*map(vars, self.tensors)]}  # asdict copies every value
        return canonical_json({"schema_version": SCHEMA_VERSION, **vars(self), **lists})

    @property
    def digest(self) -> Digest:
        """The delta's identity: ``"sha256:"`` and 64 hex digits."""
        return Digest.of(self.to_bytes())

    @property
    def size(self) -> int:
        """The total size of all files in bytes."""
        return sum(entry.size for entry in self.files)

    @classmethod
    def from_bytes(cls, data: bytes, expected: Digest) -> Manifest:
        """Read a stored manifest.

        Args:
            expected: the required digest of `data`.

        Raises:
            IntegrityError: the digest differs.
            CheckpointError: this version cannot read the manifest.
        """
        if (digest := Digest.of(data)) != expected:
            raise IntegrityError("A manifest", expected, digest, "Run `deltahub verify` on its registry.")
        return _RECENT.get(expected, lambda: _read(data, expected))


def _read(data: bytes, digest: Digest) -> Manifest:
    document, fault = parse_checked(data, SCHEMA)
    if fault:
        msg = f"The manifest {digest} cannot be read by this version: {fault}. Update deltahub."
        raise CheckpointError(msg)
    return Manifest(
        config=document["config"],
        files=tuple(FileEntry(**entry) for entry in document["files"]),
        tensors=tuple(TensorEntry(e["name"], e["dtype"], tuple(e["shape"])) for e in document["tensors"]),
        parameters=document["parameters"],
        metrics=tuple(document.get("metrics", ())),
        kind=document["kind"],
    )


# A pull reads the same manifest from its source and from the cache, and the next pull reads it again.
_RECENT: Final[SizedCache[Digest, Manifest]] = SizedCache(16 << 20, lambda manifest: manifest.weight)
