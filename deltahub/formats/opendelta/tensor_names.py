"""Names of a delta's tensors in OpenDelta: `<module>.<delta>[_<number>].<parameter>`.

The number separates deltas with the same type on one module: the second is `lora_1`; the third with a "_" in its name is cut at the
first "_", so `low_rank_adapter`, `low_rank_adapter_1`, `low_2`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

_WAYS: Final = r"(?:down|up)_proj\.(?:weight|bias)"


@dataclass(frozen=True)
class _Form:
    """The form of the names of a delta type: `<module>.<called>.<inner><leaf>`.

    Attributes:
        called: the delta's name.
        inner: what is between it and the leaf.
        leaf: a pattern of the name within the delta.
    """

    called: str
    inner: str
    leaf: str


_FORMS: Final = {
    "lora": _Form("lora", "", r"lora_[AB]"),
    "adapter": _Form("adapter", "modulelist.", _WAYS),
    "bitfit": _Form("bitfit", "", r"bias"),
    "low_rank_adapter": _Form("low_rank_adapter", "", r"(?:down|up)_sampler\.(?:W_left|W_right|b)"),
    "compacter": _Form(
        "compactor",  # OpenDelta's spelling
        "",
        r"(?:down|up)_sampler\.(?:phm_rule|phm_rule_left|phm_rule_right|W|W_left|W_right|b)",
    ),
    "parallel_adapter": _Form("parallel_adapter", "modulelist.", _WAYS),
    "prefix": _Form("prefix", "", r"past_key|past_value"),
    "soft_prompt": _Form("soft_prompt_layer", "", r"soft_embeds"),
}


def _compiled(form: _Form) -> re.Pattern[str]:
    head = form.called.split("_", maxsplit=1)[0]
    number = rf"(?:{form.called}(?:_(?P<number>\d+))?|{head}_(?P<cut>\d+))"
    return re.compile(rf"(?:(?P<module>.+)\.)?{number}\.{re.escape(form.inner)}(?P<leaf>{form.leaf})")


DELTA_TYPES: Final = tuple(_FORMS)
_LEAVES: Final = {delta_type: _compiled(form) for delta_type, form in _FORMS.items()}
# The network that generates the prefixes of all modules.
_NETWORK: Final = re.compile(r"(?P<module>.+)\.(?P<leaf>reparams)(?:_(?P<number>\d+))?\.(?P<rest>.+)")
# Types whose tensors do not name every module they act on.
SILENT_MODULES: Final = frozenset({"parallel_adapter", "prefix", "soft_prompt"})


@dataclass(frozen=True)
class Place:
    """The parts of a tensor's name.

    Attributes:
        module: the real name of the module with the delta; ``""`` for the backbone.
        number: which delta of its type on that module: "", "1", "2", ...
        leaf: the name within the delta, the same in OpenDelta and DeltaHub.
    """

    module: str
    number: str
    leaf: str


def place_of(delta_type: str, name: str) -> Place | None:
    """Parse the name of a tensor of a delta type; return None for any other tensor."""
    if delta_type == "prefix" and (match := _NETWORK.fullmatch(name)):
        return Place(match["module"], match["number"] or "", f"reparams.{match['rest']}")
    if match := _LEAVES[delta_type].fullmatch(name):
        return Place(match["module"] or "", match["number"] or match["cut"] or "", match["leaf"])
    return None


def name_of(delta_type: str, module: str, leaf: str) -> str:
    """Return the name of a tensor of the only delta on a module: the reverse of `place_of`."""
    form, place = _FORMS[delta_type], f"{module}." if module else ""
    return f"{place}{leaf}" if leaf.startswith("reparams.") else f"{place}{form.called}.{form.inner}{leaf}"


def belongs_to_a_delta(name: str) -> bool:
    """Return whether a tensor's name belongs to a delta of any type."""
    return any(place_of(delta_type, name) for delta_type in _LEAVES)


def choose_tensors(
    saved: Mapping[str, Tensor], config: Mapping[str, Any], carried: Mapping[str, int]
) -> dict[str, Place]:
    """Choose the tensors of the delta that a config describes, where several of its type were on a backbone together.

    A checkpoint holds the tensors of every delta. Its own delta is the one with the sizes of its config; failing that, they are
    distinguished as in OpenDelta, by the number of deltas the module carries already.

    Args:
        saved: all tensors of the checkpoint.
        carried: how many deltas of the type each module carries.

    Returns:
        Tensor name to its place, in the order of the checkpoint.
    """
    places = {name: place for name in saved if (place := place_of(config["delta_type"], name))}
    deltas_by_module: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, place in places.items():
        deltas_by_module.setdefault(place.module, {}).setdefault(place.number, {})[place.leaf] = saved[name]
    numbers = {
        module: _number(deltas, config, carried.get(module, 0)) for module, deltas in _single(deltas_by_module).items()
    }
    return {name: place for name, place in places.items() if numbers.get(place.module) == place.number}


def _single(deltas_by_module: dict[str, dict[str, dict[str, Tensor]]]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Remove duplicates: a parallel adapter can be saved twice, at both ends of its span of modules."""
    distinct_leaves: list[dict[str, Tensor]] = []
    single_deltas: dict[str, dict[str, dict[str, Tensor]]] = {}
    for module, deltas in deltas_by_module.items():
        for number, leaves in deltas.items():
            if "down_proj.weight" not in leaves or not any(
                _same(leaves, earlier_leaves) for earlier_leaves in distinct_leaves
            ):
                distinct_leaves.append(leaves)
                single_deltas.setdefault(module, {})[number] = leaves
    return single_deltas


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[leaf], second[leaf]) for leaf in first)


def _number(deltas: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any], turn: int) -> str:
    fitting = [number for number, leaves in deltas.items() if _fits(leaves, config)]
    everyone = list(deltas)
    return fitting[0] if len(fitting) == 1 else everyone[min(turn, len(everyone) - 1)]


def _fits(leaves: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    """Return whether a delta's tensors have the sizes of its config."""
    sizes = {
        "lora_A": config.get("lora_r"),
        "down_proj.weight": config.get("bottleneck_dim"),
        "past_key": config.get("prefix_token_num"),
        "soft_embeds": config.get("soft_token_num"),
    }
    if any(leaf in leaves and size is not None and leaves[leaf].shape[:1] != (size,) for leaf, size in sizes.items()):
        return False
    ways = leaves.get("down_sampler.b"), leaves.get("up_sampler.b")
    if ways[0] is None or ways[1] is None or config.get("reduction_factor") is None:
        return True
    return ways[0].numel() == ways[1].numel() // int(config["reduction_factor"])
