"""The record of a delta's backbone: one leaf per tensor, one hash over all, and a description of differences.

    hash = md5 of canonical JSON of the sorted list of [name, dtype, shape, leaf]
    leaf = xxh3-128 of the tensor's bytes (row-major, little-endian)

The list covers the backbone tensors that the delta does not change: parameters, persistent buffers, and anything else a module
saves with its state. Version 1 of the record covered only floating-point buffers. Both versions give the same hash for the same
list, so a search by hash finds deltas of either version. A backbone with quantised layers has a record of version 3, which also
covers tensors that such a layer keeps elsewhere, and the settings of its quantisation, whose hash is

    hash = md5 of canonical JSON of [that list, the sorted list of [name of the weight, settings]]

The record travels with the delta as `backbone.json`, so that a mismatch can say which tensors differ and how.
`deltahub.engine.fingerprint` makes it from a model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from deltahub.checkpoint.quantised_weight import QuantisedWeight, from_json, methods, split, to_json
from deltahub.errors import CheckpointError, FingerprintMismatch
from deltahub.files.documents import canonical_json, parse_checked

SCHEMA: Final = "backbone.v1"
VERSION: Final = 2  # of a dense backbone
QUANTISED_VERSION: Final = 3
ALGORITHM: Final = "md5-of-xxh3-128"

EXACT: Final = "exact"
OTHER_WEIGHTS: Final = "same structure, other weights"
OTHER_PRECISION: Final = "other precision"
OTHER_QUANTISATION: Final = "other quantisation"
RENAMED: Final = "renamed"
RESIZED: Final = "resized embeddings"
INCOMPATIBLE: Final = "incompatible"

_PARTS: Final = (".absmax", ".SCB", ".qweight", ".W_q")  # names that only quantised layers use


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
        version: the version of the record: 1 leaves out integer buffers, and 3 covers the settings of quantised layers.
        quantised: the quantised weights; their parts are among the leaves.
    """

    leaves: tuple[Leaf, ...]
    version: int = VERSION
    quantised: tuple[QuantisedWeight, ...] = ()

    @cached_property
    def hash(self) -> str:
        """A hash of 32 hex digits; equal for equal tensors under equal names."""
        rows: list[Any] = [[leaf.name, leaf.dtype, list(leaf.shape), leaf.hash] for leaf in sorted(self.leaves)]
        if self.version >= QUANTISED_VERSION:
            rows = [rows, sorted(weight.identity for weight in self.quantised)]
        return hashlib.md5(canonical_json(rows), usedforsecurity=False).hexdigest()

    @property
    def is_quantised(self) -> bool:
        """Whether weights are quantised, also by the names of parts in a record of version 2."""
        return bool(self.quantised) or any(leaf.name.endswith(_PARTS) for leaf in self.leaves)

    def to_bytes(self) -> bytes:
        """Return the content of `backbone.json`: one line per tensor."""
        rows = [json.dumps([leaf.name, leaf.dtype, list(leaf.shape), leaf.hash]) for leaf in sorted(self.leaves)]
        head = f'{{"format_version": {self.version}, "algorithm": "{ALGORITHM}", "hash": "{self.hash}", '
        if self.version >= QUANTISED_VERSION:
            head += json.dumps(to_json(self.quantised))[1:-1] + ", "
        head += '"tensors": [\n'
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
            version = document["format_version"]
            try:
                fingerprint = cls(leaves, version, from_json(document) if version >= QUANTISED_VERSION else ())
            except IndexError:
                fingerprint = cls(())
            if fingerprint.hash == document["hash"]:
                return fingerprint
            fault = f"its list has the hash {fingerprint.hash}, not {document['hash']}"
        msg = f"backbone.json is malformed: {fault}. Fetch or save the delta again."
        raise CheckpointError(msg)

    def compare(self, actual: Fingerprint) -> Difference:
        """Describe how the backbone `actual` differs from this, the expected one."""
        if self.hash == actual.hash:
            return Difference(EXACT)
        if difference := _compare_quantisation(self, actual):
            return difference
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
            same_weights: False to accept other values, another precision or another quantisation under the same names and shapes.

        Raises:
            FingerprintMismatch: `actual` is another backbone.
        """
        difference = self.compare(actual)
        if difference.level == EXACT:
            return
        if not same_weights and difference.level in (OTHER_WEIGHTS, OTHER_PRECISION, OTHER_QUANTISATION):
            return
        raise FingerprintMismatch(difference.level, difference.detail, self.hash, actual.hash)


def _compare_quantisation(expected: Fingerprint, actual: Fingerprint) -> Difference | None:
    """Describe another quantisation of a backbone with the same tensors; None if it is not that."""
    sides = (expected, actual)
    weights, others = zip(*(split(side.quantised, [leaf.name for leaf in side.leaves]) for side in sides), strict=True)
    settings = [{name: weight.quantisation.settings for name, weight in side.items()} for side in weights]
    if settings[0] == settings[1] or {*weights[0], *others[0]} != {*weights[1], *others[1]}:
        return None
    shapes = [
        {leaf.name: leaf.shape for leaf in side.leaves} | {name: weight.shape for name, weight in side_weights.items()}
        for side, side_weights in zip(sides, weights, strict=True)
    ]
    quantised_names = weights[0].keys() | weights[1].keys()
    if any(_differ(shapes[0][n], shapes[1][n], turned=n in quantised_names) for n in (*weights[0], *others[0])):
        return None
    if methods(expected.quantised) != methods(actual.quantised):
        return Difference(OTHER_QUANTISATION, f"it is recorded on {_form(expected)}, and this one is {_form(actual)}")
    if weights[0].keys() != weights[1].keys():
        words = [
            f"{name} is {'not ' * (name in weights[0])}quantised" for name in weights[0].keys() ^ weights[1].keys()
        ]
        return Difference(OTHER_QUANTISATION, _some(sorted(words)))
    changes = Counter(change for name in weights[0] for change in _changes(weights[0][name], weights[1][name]))
    level = OTHER_PRECISION if {key for key, _ in changes} == {"compute_dtype"} else OTHER_QUANTISATION
    return Difference(level, _some([f"{words} in {count} layers" for (_, words), count in changes.items()]))


def _differ(shape: tuple[int, ...], other: tuple[int, ...], *, turned: bool) -> bool:
    """Return whether two shapes differ.

    Args:
        turned: whether one is of a quantised weight, which may be kept transposed, and whose shape may be unknown.
    """
    return shape != other and not (turned and (not shape or not other or shape == other[::-1]))


def _changes(expected: QuantisedWeight, actual: QuantisedWeight) -> list[tuple[str, str]]:
    """Return the settings that differ, each with a description."""
    return list(_setting_changes(expected.quantisation.options, actual.quantisation.options))


def _setting_changes(before: dict[str, Any], after: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _setting_changes(old, new, f"{path}{key}.")
        elif old != new:
            yield f"{path}{key}", f"{path}{key} is {_shown(new)}, expected {_shown(old)}"


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value).strip('"')


def _form(fingerprint: Fingerprint) -> str:
    """Describe the form of a backbone's weights: their quantisation, or the dtype of most of them."""
    if fingerprint.is_quantised:
        return methods(fingerprint.quantised) or "quantised weights (saved by an earlier release)"
    dtypes = Counter(leaf.dtype for leaf in fingerprint.leaves)
    return dtypes.most_common(1)[0][0] if dtypes else "empty"


def _compare_names(expected: Fingerprint, actual: Fingerprint) -> Difference:
    contents = [Counter((leaf.dtype, leaf.shape, leaf.hash) for leaf in side.leaves) for side in (expected, actual)]
    expected_names, actual_names = ({leaf.name for leaf in side.leaves} for side in (expected, actual))
    missing, extra = sorted(expected_names - actual_names), sorted(actual_names - expected_names)
    words = []
    if missing:
        words.append(f"missing {_some(missing)}")
    if extra:
        words.append(f"unexpected {_some(extra)}")
    if _form(expected) != _form(actual) and (expected.is_quantised or actual.is_quantised):
        words.insert(0, f"it is recorded on {_form(expected)}, and this one is {_form(actual)}")
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
