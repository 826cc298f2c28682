"""Marks by which torch.compile notices a site at a module that has neither parameters nor children, such as an activation.

The compiler checks no attribute of such a module that a site changes, but it checks the type of its parent's `_modules`. While
there is a site, that type encodes at which children, and with which hooks. A graph that was made without the site is then not reused, and
no other graph is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

from torch import nn

from deltahub.engine.modules import modules_by_name
from deltahub.engine.site import CHILD, hooks_of

_Key = tuple[tuple[str, bool, bool], ...]  # name of a child, and whether it has a hook before and one after


class MarkedChildren(dict[str, Any]):
    """The children of a module, of which some without tensors have a site; there is a subclass for each set of these."""

    key: ClassVar[_Key] = ()

    def __reduce__(self) -> Any:
        return _empty, (self.key,), None, None, iter(self.items())


@cache
def _kind(key: _Key) -> type[dict[str, Any]]:
    return type("MarkedChildren", (MarkedChildren,), {"key": key}) if key else dict


def _empty(key: _Key) -> dict[str, Any]:
    return _kind(key)()


def is_bare(module: nn.Module) -> bool:
    """Return whether a module has neither parameters nor children of its own."""
    return not module._parameters and not module._modules.keys() - {CHILD}


def mark_parents(backbone: nn.Module, targets: Iterable[nn.Module]) -> bool:
    """Encode in the parents of bare modules which sites these have.

    Args:
        backbone: the model that contains the modules.
        targets: modules at which a site was added, changed or removed; those with parameters or children are ignored.

    Returns:
        Whether every bare module has a parent in the backbone, and no parent has children of a type of its own.
    """
    bare = {id(target) for target in targets if is_bare(target)}
    if not bare:
        return True
    marked: set[int] = set()
    for parent in modules_by_name(backbone).values():
        if affected := bare.intersection(map(id, parent._modules.values())):
            if not _mark(parent):
                return False
            marked |= affected
    return marked == bare


def _mark(parent: nn.Module) -> bool:
    children = parent._modules
    if type(children) is not dict and not isinstance(children, MarkedChildren):
        return False
    key = tuple(
        (name, *hooks_of(child))
        for name, child in children.items()
        if child is not None and is_bare(child) and CHILD in child._modules
    )
    parent._modules = _kind(key)(children)
    return True
