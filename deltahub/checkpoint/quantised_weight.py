"""The quantisation of a backbone's weights, as its record keeps it.

A quantised layer stores a weight as several tensors (codes, scales, code books), its parts. The record has a leaf for each part,
and for the weight itself its shape and dtype after dequantisation, the settings that decide what the layer computes, and a few
of its values.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltahub.files.documents import canonical_json


@dataclass(frozen=True, order=True)
class Quantisation:
    """One way in which weights are quantised.

    Attributes:
        method: the kind of codes and the library, e.g. ``"nf4 (bitsandbytes)"``.
        bits: bits per weight; 0 if unknown.
        dtype: the dtype of the dequantised values, e.g. ``"bfloat16"``; empty if unknown.
        settings: canonical JSON of the options that decide what a layer computes from the parts.
        parts: the names of the tensors that store a weight, within their layer.
    """

    method: str
    bits: int
    dtype: str
    settings: str
    parts: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """The settings as a mapping."""
        options: dict[str, Any] = json.loads(self.settings)
        return options


@dataclass(frozen=True, order=True)
class QuantisedWeight:
    """One quantised weight.

    Attributes:
        name: the name of the weight in the dense backbone, e.g. ``"layer.weight"``.
        shape: its sizes after dequantisation; empty if unknown.
        quantisation: the way it is quantised.
        samples: some of its dequantised values, at the places that `sampled_places` gives; empty if they were not read.
    """

    name: str
    shape: tuple[int, ...]
    quantisation: Quantisation
    samples: tuple[float, ...] = ()

    @property
    def part_names(self) -> list[str]:
        """The names of its parts in the backbone."""
        layer = self.name.rpartition(".")[0]
        return [f"{layer}.{part}" if layer else part for part in self.quantisation.parts]

    @property
    def identity(self) -> list[Any]:
        """The part of it that belongs to the fingerprint of its backbone: the parts have leaves, samples follow from them."""
        return [self.name, self.quantisation.settings]


def sampled_places(count: int, samples: int = 32) -> list[int]:
    """Return the places of the sampled values among `count`, scattered over rows and columns."""
    return [(number * 2654435761 + 12345) % count for number in range(samples if count else 0)]


def split(weights: Iterable[QuantisedWeight], names: Iterable[str]) -> tuple[dict[str, QuantisedWeight], list[str]]:
    """Return the quantised weights by name, and the names of a backbone's tensors that are not parts of one."""
    by_name = {weight.name: weight for weight in weights}
    parts = {part for weight in by_name.values() for part in weight.part_names}
    return by_name, [name for name in names if name not in parts]


def methods(weights: Iterable[QuantisedWeight]) -> str:
    """Describe how weights are quantised, the most frequent way first; empty if none is."""
    names = Counter(weight.quantisation.method for weight in weights)
    return " and ".join(name for name, _ in names.most_common(3))


def to_json(weights: Sequence[QuantisedWeight]) -> dict[str, Any]:
    """Return the members of `backbone.json` on quantised weights."""
    kinds = sorted({weight.quantisation for weight in weights})
    numbers = {kind: number for number, kind in enumerate(kinds)}
    return {
        "quantisations": [
            {
                "method": kind.method,
                "bits": kind.bits,
                "dtype": kind.dtype,
                "settings": kind.options,
                "parts": list(kind.parts),
            }
            for kind in kinds
        ],
        "quantised": [[w.name, numbers[w.quantisation], list(w.shape), list(w.samples)] for w in sorted(weights)],
    }


def from_json(document: Mapping[str, Any]) -> tuple[QuantisedWeight, ...]:
    """Read the members of `backbone.json` on quantised weights.

    Raises:
        IndexError: a weight refers to a quantisation that is missing.
    """
    kinds = [
        Quantisation(
            kind["method"],
            kind["bits"],
            kind["dtype"],
            canonical_json(kind["settings"]).decode(),
            tuple(kind["parts"]),
        )
        for kind in document.get("quantisations", ())
    ]
    return tuple(
        QuantisedWeight(name, tuple(shape), kinds[number], tuple(float(sample) for sample in samples))
        for name, number, shape, samples in document.get("quantised", ())
    )
