"""The record of a delta's backbone: one leaf per tensor, one hash over all, and a description of differences.

    hash = md5 of canonical JSON of the sorted list of [name, dtype, shape, leaf]
    leaf = xxh3-128 of the tensor's bytes (row-major, little-endian)

The list covers the backbone tensors that the delta does not change: parameters, persistent buffers, and anything else a module
saves with its state. Version 1 of the record covered only floating-point buffers. Both versions give the same hash for the same
list, so a search by hash finds deltas of either version. The record travels with the delta as `backbone.json`, so that a
mismatch can say which tensors differ and how. `deltahub.engine.fingerprint` makes it from a model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from deltahub.errors import CheckpointError, FingerprintMismatch
from deltahub.files.documents import canonical_json, parse_checked

SCHEMA: Final = "backbone.v1"
VERSION: Final = 2
ALGORITHM: Final = "md5-of-xxh3-128"

EXACT: Final = "exact"
OTHER_WEIGHTS: Final = "same structure, other weights"
OTHER_PRECISION: Final = "other precision"
RENAMED: Final = "renamed"
RESIZED: Final = "resized embeddings"
INCOMPATIBLE: Final = "incompatible"


@dataclass(frozen=True, order=True)
class Leaf:
    """One tensor of a backbone.

    Attributes:
        name: its name in `state_dict()`.
        dtype: e.g. ``"float32"``.
        shape: its sizes.
        hash: xxh3-128 of its bytes, 32 hex digits.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    hash: str


@dataclass(frozen=True)
class Difference:
    """The difference between two backbones.

    Attributes:
        level: one of the constants at the top of this module, such as `EXACT`.
        detail: a description of the tensors that differ; empty if none.
    """

    level: str
    detail: str = ""


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a backbone, or of the part that a delta does not change.

    Attributes:
        leaves: one per tensor, sorted by name.
        version: the version of the record: 1 leaves out integer buffers.
    """

    leaves: tuple[Leaf, ...]
    version: int = VERSION

    @cached_property
    def hash(self) -> str:
        """A hash of 32 hex digits; equal for equal tensors under equal names."""
        rows = [[leaf.name, leaf.dtype, list(leaf.shape), leaf.hash] for leaf in sorted(self.leaves)]
        return hashlib.md5(canonical_json(rows), usedforsecurity=False).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the content of `backbone.json`: one line per tensor."""
        rows = [json.dumps([leaf.name, leaf.dtype, list(leaf.shape), leaf.hash]) for leaf in sorted(self.leaves)]
        head = f'{{"format_version": {self.version}, "algorithm": "{ALGORITHM}", "hash": "{self.hash}", "tensors": [\n'
        return (head + ",\n".join(rows) + "\n]}\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Fingerprint:
        """Read `backbone.json`.

        Raises:
            CheckpointError: it is malformed, or its hash does not match its list.
        """
        document, fault = parse_checked(data, SCHEMA)
        if fault is None:
            leaves = tuple(Leaf(n, d, tuple(shape), leaf) for n, d, shape, leaf in document["tensors"])
            fingerprint = cls(leaves, document["format_version"])
            if fingerprint.hash == document["hash"]:
                return fingerprint
            fault = f"its list has the hash {fingerprint.hash}, not {document['hash']}"
        msg = f"backbone.json is malformed: {fault}. Fetch or save the delta again."
        raise CheckpointError(msg)

    def compare(self, actual: Fingerprint) -> Difference:
        """Describe how the backbone `actual` differs from this, the expected one."""
        if self.hash == actual.hash:
            return Difference(EXACT)
        expected_leaves = {leaf.name: leaf for leaf in self.leaves}
        actual_leaves = {leaf.name: leaf for leaf in actual.leaves}
        if expected_leaves.keys() != actual_leaves.keys():
            return _compare_names(self, actual)
        shapes = [name for name in expected_leaves if expected_leaves[name].shape != actual_leaves[name].shape]
        if shapes:
            level = RESIZED if _only_rows_differ(expected_leaves, actual_leaves, shapes) else INCOMPATIBLE
            words = [
                f"{n} is {list(actual_leaves[n].shape)}, expected {list(expected_leaves[n].shape)}" for n in shapes
            ]
            return Difference(level, _some(words))
        dtypes = [name for name in expected_leaves if expected_leaves[name].dtype != actual_leaves[name].dtype]
        if dtypes:
            words = [f"{n} is {actual_leaves[n].dtype}, expected {expected_leaves[n].dtype}" for n in dtypes]
            return Difference(OTHER_PRECISION, _some(words))
        values = [name for name in expected_leaves if expected_leaves[name].hash != actual_leaves[name].hash]
        return Difference(
            OTHER_WEIGHTS, f"{len(values)} of {len(expected_leaves)} tensors have other values: {_some(values)}"
        )

    def require(self, actual: Fingerprint, *, same_weights: bool = True) -> None:
        """Raise unless `actual` is this backbone.

        Args:
            same_weights: False to accept other values or another precision under the same names and shapes.

        Raises:
            FingerprintMismatch: `actual` is another backbone.
        """
        difference = self.compare(actual)
        if difference.level == EXACT:
            return
        if not same_weights and difference.level in (OTHER_WEIGHTS, OTHER_PRECISION):
            return
        raise FingerprintMismatch(difference.level, difference.detail, self.hash, actual.hash)


def _compare_names(expected: Fingerprint, actual: Fingerprint) -> Difference:
    contents = [Counter((leaf.dtype, leaf.shape, leaf.hash) for leaf in side.leaves) for side in (expected, actual)]
    expected_names, actual_names = ({leaf.name for leaf in side.leaves} for side in (expected, actual))
    missing, extra = sorted(expected_names - actual_names), sorted(actual_names - expected_names)
    words = []
    if missing:
        words.append(f"missing {_some(missing)}")
    if extra:
        words.append(f"unexpected {_some(extra)}")
    level = RENAMED if contents[0] == contents[1] else INCOMPATIBLE
    return Difference(level, "; ".join(words))


def _only_rows_differ(expected_leaves: dict[str, Leaf], actual_leaves: dict[str, Leaf], names: Iterable[str]) -> bool:
    """Return whether the same number of rows, a vocabulary, was added to or removed from every given tensor."""
    pairs = [(expected_leaves[name].shape, actual_leaves[name].shape) for name in names]
    same_columns = all(len(a) == len(b) and len(a) in (1, 2) and a[1:] == b[1:] for a, b in pairs)
    two_dimensional = any(len(a) == 2 for a, _ in pairs)
    return same_columns and two_dimensional and len({(a[0], b[0]) for a, b in pairs}) == 1


def _some(words: list[str], limit: int = 3) -> str:
    shown = ", ".join(words[:limit])
    return shown if len(words) <= limit else f"{shown} and {len(words) - limit} more"
