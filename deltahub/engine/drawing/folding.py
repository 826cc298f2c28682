"""A model's modules as a tree with equal siblings folded, so that twelve equal blocks are shown once.

Two modules are equal if their contents are: parameters with shapes and roles, and children.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from math import prod
from typing import Literal

from torch import nn

from deltahub.engine.site import is_delta_name

Role = Literal["trained", "frozen", "delta"]
Naming = Callable[[str], str | None]  # maps a module's real name to its name in the tree, or to None to leave it out


@dataclass(frozen=True)
class Leaf:
    """A parameter.

    Attributes:
        role: ``"delta"`` for a delta's parameter, else whether it requires a gradient.
    """

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass
class Node:
    """A module, or several equal ones.

    Attributes:
        names: the name of each within its parent.
        kinds: the class of each.
        parameters: the parameters that each holds directly.
        children: the modules inside each.
        delta: whether it belongs to a delta.
    """

    names: list[str]
    kinds: list[str]
    parameters: list[Leaf]
    children: list[Node] = field(default_factory=list)
    delta: bool = False

    @cached_property
    def below(self) -> tuple[object, ...]:
        """The contents that two modules must share to be folded."""
        inner = tuple((tuple(child.names), tuple(child.kinds), child.below) for child in self.children)
        return tuple(self.parameters), inner

    @cached_property
    def size(self) -> int:
        """Number of elements in all parameters of each module; a tensor shared by two parameters counts twice."""
        own_size = sum(leaf.size for leaf in self.parameters)
        return own_size + sum(child.size * len(child.names) for child in self.children)


def fold(model: nn.Module, *, keep_empty: bool = False, naming: Naming | None = None) -> list[Node]:
    """Return the modules inside a model as a folded tree.

    Args:
        keep_empty: keep modules without parameters.
        naming: names for the tree; by default the names within the parents. The children of a module that is left out
            take its place.
    """
    return list(_children(model, "", keep_empty, naming or _own_name))


def _own_name(path: str) -> str:
    return path.rpartition(".")[2]


def _children(module: nn.Module, prefix: str, keep_empty: bool, naming: Naming) -> list[Node]:
    nodes: list[Node] = []
    for node in _each(module, prefix, keep_empty, naming):
        bare = not (node.parameters or node.children)  # without contents, all such modules would be equal
        twin = None if bare else next((sibling for sibling in nodes if sibling.below == node.below), None)
        if twin is None:
            nodes.append(node)
        else:
            twin.names.extend(node.names)
            twin.kinds.extend(node.kinds)
    return nodes


def _each(module: nn.Module, prefix: str, keep_empty: bool, naming: Naming) -> Iterator[Node]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        shown = naming(path)
        if shown is None:
            yield from _each(child, f"{path}.", keep_empty, naming)
            continue
        inner = _children(child, f"{path}.", keep_empty, naming)
        node = Node([shown], [type(child).__name__], list(_leaves(child, path)), inner, is_delta_name(path))
        if node.parameters or node.children or keep_empty:
            yield node


def _leaves(module: nn.Module, path: str) -> Iterator[Leaf]:
    for name, parameter in module.named_parameters(recurse=False):
        trained: Role = "trained" if parameter.requires_grad else "frozen"
        yield Leaf(name, tuple(parameter.shape), "delta" if is_delta_name(f"{path}.{name}") else trained)


def abbreviated(names: Iterable[str]) -> str:
    """Abbreviate the names of equal modules: ``"0-3,5-5"`` for block numbers, else the names with commas."""
    names = list(names)
    if not all(name.isdecimal() for name in names):
        return ",".join(names)
    runs = groupby(enumerate(map(int, names)), key=lambda pair: pair[1] - pair[0])
    spans = [[number for _, number in run] for _, run in runs]
    return ",".join(f"{span[0]}-{span[-1]}" for span in spans)


def printable(name: str) -> str:
    """Replace the characters of a name that control a terminal or that no page can hold."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)


def short_count(number: int) -> str:
    """Format a count with three digits: ``"768"``, ``"591K"``, ``"85.1M"``, ``"6.74B"``."""
    value, unit = float(number), ""
    for larger in ("K", "M", "B"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    if not unit:
        return str(number)
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{unit}"
