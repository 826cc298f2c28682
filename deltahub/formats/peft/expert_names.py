"""Layers of single experts in transformers 4, which are parts of a stacked parameter in transformers 5.

    mlp.experts.3.gate_proj (n, d)  ->  mlp.experts.gate_up_proj[3, :n]         of (experts, 2 n, d)
    mlp.experts.3.up_proj   (n, d)  ->  mlp.experts.gate_up_proj[3, n:]
    mlp.experts.3.down_proj (d, n)  ->  mlp.experts.down_proj[3]                of (experts, d, n)

The names are those of transformers' own conversion tables; stacks made by other operations are not known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ExpertPlace:
    """The part of a stacked parameter that was a layer of its own.

    Attributes:
        parameter: plain name of the parameter.
        expert: index of the expert.
        part: index among the parts with equal numbers of rows that were joined.
        parts: how many parts were joined.
        spelled: the name of the layer in the adapter.
    """

    parameter: str
    expert: int
    part: int
    parts: int
    spelled: str


def expert_place(name: str, renamed: str, source: str, converters: Sequence[Any]) -> ExpertPlace | None:
    """Return the place of a layer's weight; None if its parameter is not a stack of experts with joined rows.

    Args:
        name: name of the weight before conversion.
        renamed: name of the parameter.
        source: the pattern of the conversion table that matches.
        converters: the conversions of the model.
    """
    converter = next((converter for converter in converters if source in converter.source_patterns), None)
    index = re.search(r"\.experts\.(\d+)\.", name)
    if converter is None or index is None or len(converter.target_patterns) != 1:
        return None
    steps = [(type(step).__name__, getattr(step, "dim", None)) for step in converter.operations]
    parts = len(converter.source_patterns)
    if steps != [("MergeModulelist", 0), *([("Concatenate", 1)] if parts > 1 else [])]:
        return None
    return ExpertPlace(
        renamed, int(index[1]), list(converter.source_patterns).index(source), parts, name.removesuffix(".weight")
    )
