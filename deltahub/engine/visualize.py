"""The structure graph: a model as a tree in which equal neighbours are folded into one.

    root
    └── encoder (BertEncoder)
        └── layer (ModuleList)
            └── 0-11(BertLayer)
                └── query,key,value(Linear) weight:[768, 768] bias:[768]

Names are white, types green, repeated names red, trainable parameters cyan, frozen ones grey-blue, deltas purple.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree
from torch import nn

from deltahub.engine.site import is_delta_name

_TRAINABLE, _FROZEN, _DELTA = "cyan", "rgb(0,70,100)", "rgb(175,0,255)"


@dataclass
class _Node:
    """A module, or several equal ones."""

    names: list[str]
    kinds: list[str]
    parameters: list[str]
    children: list[_Node] = field(default_factory=list)

    @property
    def shape(self) -> tuple[object, ...]:
        """What two nodes must share to be folded: everything below their own label."""
        return (tuple(self.parameters), tuple((child.label, child.shape) for child in self.children))

    @property
    def label(self) -> str:
        kinds = escape(",".join(dict.fromkeys(self.kinds)))
        if len(self.names) == 1:
            return f"[white]{escape(self.names[0])} [green]({kinds})"
        if len(set(self.kinds)) == 1:
            return f"[red]{escape(_ranges(self.names))}[green]({kinds})"
        pairs = zip(self.names, self.kinds, strict=True)
        return ",".join(f"[red]{escape(name)}[green]({escape(kind)})" for name, kind in pairs)


def _ranges(names: list[str]) -> str:
    """``"0-3,5-5"`` for block numbers, else the names with commas."""
    if not all(name.isdigit() for name in names):
        return ",".join(names)
    runs = groupby(enumerate(map(int, names)), key=lambda pair: pair[1] - pair[0])
    spans = [[number for _, number in run] for _, run in runs]
    return ",".join(f"{span[0]}-{span[-1]}" for span in spans)


class Visualization:
    """Draws a model.

    Args:
        plm: the model, with or without deltas.
    """

    def __init__(self, plm: nn.Module) -> None:
        self.plm = plm

    def structure_graph(
        self,
        rootname: str = "root",
        expand_params: bool = False,
        keep_non_params: bool = False,
        printTree: bool = True,  # noqa: N803  (the name in OpenDelta)
    ) -> Tree:
        """The model as a tree.

        Args:
            rootname: what to call the model itself.
            expand_params: give every parameter a line of its own.
            keep_non_params: keep modules without parameters.
            printTree: print it as well.
        """
        tree = Tree(f"[white]{escape(rootname)}")
        for child in _children(self.plm, "", keep_non_params):
            _grow(tree, child, expand_params)
        if printTree:
            Console(highlight=False).print(tree)
        return tree


def _children(module: nn.Module, prefix: str, keep_empty: bool) -> list[_Node]:
    nodes: list[_Node] = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        node = _Node(
            [name], [type(child).__name__], list(_parameters(child, path)), _children(child, f"{path}.", keep_empty)
        )
        if not (node.parameters or node.children or keep_empty):
            continue
        bare = not (node.parameters or node.children)  # nothing to tell two of them apart by
        twin = None if bare else next((other for other in nodes if other.shape == node.shape), None)
        if twin is None:
            nodes.append(node)
        else:
            twin.names.append(name)
            twin.kinds.extend(node.kinds)
    return nodes


def _parameters(module: nn.Module, path: str) -> Iterator[str]:
    for name, parameter in module.named_parameters(recurse=False):
        trained = _TRAINABLE if parameter.requires_grad else _FROZEN
        color = _DELTA if is_delta_name(f"{path}.{name}") else trained
        yield f"[{color}]{escape(name)}:{escape(str(list(parameter.shape)))}"


def _grow(tree: Tree, node: _Node, expand: bool) -> None:
    label = node.label if expand else " ".join([node.label, *node.parameters])
    branch = tree.add(label)
    for parameter in node.parameters if expand else ():
        branch.add(parameter)
    for child in node.children:
        _grow(branch, child, expand)
