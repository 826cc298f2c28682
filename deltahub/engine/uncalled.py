"""Modules that a backbone has run without calling, though a delta is on them: nothing was trained there, and a merge would begin to act."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from torch import nn

from deltahub.engine.insertion import overrides
from deltahub.engine.ledger import has_run
from deltahub.engine.modules import module_at
from deltahub.engine.site import site_of, was_called

_NUMBER: Final = re.compile(r"(?<![^.])\d+(?![^.])")


def uncalled(backbone: nn.Module, delta: str, addresses: Iterable[str]) -> list[str]:
    """The modules at which a delta has never acted though the backbone ran: their parents read them without calling them, say.

    Layers that differ only in their numbers count as one: an expert that no token was sent to, or a layer that was dropped, is
    left out where another of its kind was called. So is a layer that a graph of torch.compile may have called.

    Args:
        delta: its name.
        addresses: where it is.
    """
    targets = {}
    for address in addresses:
        target = module_at(backbone, address)
        insertion = site_of(target).slots[delta]
        if overrides(insertion, "before") or overrides(insertion, "after"):
            targets[address] = target
    if not (has_run(backbone, delta) or any(site_of(target).called for target in targets.values())):
        return []
    seen = {_kind(address) for address, target in targets.items() if was_called(target)}
    return [address for address in targets if _kind(address) not in seen]


def _kind(address: str) -> str:
    return _NUMBER.sub("*", address)
