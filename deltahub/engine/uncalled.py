"""Modules that a backbone has run without calling, though a delta is on them: nothing was trained there, and a merge would begin to act."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from torch import nn

from deltahub.engine.compiling import has_compiled
from deltahub.engine.insertion import overrides
from deltahub.engine.modules import module_at
from deltahub.engine.site import site_of

_NUMBER: Final = re.compile(r"(?<![^.])\d+(?![^.])")


def uncalled(backbone: nn.Module, delta: str, addresses: Iterable[str]) -> list[str]:
    """The modules at which a delta has never acted though it acted at others: their parents read them without calling them, say.

    Layers that differ only in their numbers count as one: an expert that no token was sent to, or a layer that was dropped, is
    left out where another of its kind was called. Nothing is known, and none is named, once something has been compiled.

    Args:
        delta: its name.
        addresses: where it is.
    """
    if has_compiled():
        return []
    sites = {}
    for address in addresses:
        site = site_of(module_at(backbone, address))
        if overrides(site.slots[delta], "before") or overrides(site.slots[delta], "after"):
            sites[address] = site
    if not any(site.called for site in sites.values()):
        return []
    seen = {_kind(address) for address, site in sites.items() if site.called or site.called_before}
    return [address for address in sites if _kind(address) not in seen]


def _kind(address: str) -> str:
    return _NUMBER.sub("*", address)
