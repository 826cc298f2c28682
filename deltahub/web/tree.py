"""The backbone's tree as JSON, for a page on which modules are chosen."""

from __future__ import annotations

from typing import Any

from torch import nn

from deltahub.engine.drawing.folding import Node, fold
from deltahub.engine.modules import own_modules
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap
from deltahub.web.document import short_name


def tree_json(backbone: nn.Module) -> dict[str, Any]:
    """What the page draws.

    Returns:
        title, total (its own parameters and those of deltas, each tensor once), children (as `fold` gives them, with
        their sizes) and common: real name to short common name, of every module that has one.
    """
    structure = StructureMap.of(backbone)
    commons = {name: structure.common_name(name) for name, _ in own_modules(backbone)}
    return {
        "title": type(backbone).__name__,
        "total": sum(parameter.numel() for parameter in backbone.parameters()),
        "children": [_node_json(node) for node in fold(backbone)],
        "common": {name: short_name(common) for name, common in commons.items() if common.endswith(MARK)},
    }


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
    """The name by which addresses know each module, by every name it has: a shared module answers to its first only."""
    first = {id(module): name for name, module in own_modules(backbone)}
    every = backbone.named_modules(remove_duplicate=False)
    return {name: first[id(module)] for name, module in every if name and id(module) in first}
