"""The backbone's tree as JSON, for the picker page."""

from __future__ import annotations

from typing import Any

from torch import nn

from deltahub.engine.drawing.folding import Node, fold
from deltahub.engine.drawing.html import short_name
from deltahub.engine.modules import own_modules
from deltahub.engine.structure.experts import named_experts
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap


def tree_json(backbone: nn.Module) -> dict[str, Any]:
    """Return the data that the page displays.

    Returns:
        title, total (the backbone's own parameters and those of deltas, each tensor once), children (as returned by `fold`, with
        their sizes) and common: real name to short common name, for every module with a common name.
    """
    structure = StructureMap.of(backbone)
    commons = {name: structure.common_name(name) for name, _ in own_modules(backbone)}
    return {
        "title": type(backbone).__name__,
        "total": sum(parameter.numel() for parameter in backbone.parameters()),
        "children": [_node_json(node) for node in fold(backbone)],
        "common": {name: short_name(common) for name, common in commons.items() if common.endswith(MARK)}
        | _expert_names(structure),
    }


def _expert_names(structure: StructureMap) -> dict[str, str]:
    """Return the short names of stacks of experts, and of the routers and shared experts beside them, by real name of the module."""
    names: dict[str, str] = {}
    for part in named_experts(structure):
        ends = part.common.replace(MARK, "").split(".")
        last = next(index for index, end in enumerate(ends) if end in ("experts", "router", "shared_expert"))
        names[part.module] = "experts" if ends[last] == "experts" else ".".join(ends[last:])
    return names


def _node_json(node: Node) -> dict[str, Any]:
    return {
        "names": node.names,
        "kinds": node.kinds,
        "parameters": [{"name": leaf.name, "shape": list(leaf.shape), "role": leaf.role} for leaf in node.parameters],
        "size": node.size,
        "delta": node.delta,
        "children": [_node_json(child) for child in node.children],
    }


def first_names(backbone: nn.Module) -> dict[str, str]:
    """Map every name of each module to the first, which addresses use: a shared module is matched by its first name only."""
    first = {id(module): name for name, module in own_modules(backbone)}
    every = backbone.named_modules(remove_duplicate=False)
    return {name: first[id(module)] for name, module in every if name and id(module) in first}
