"""Previews of a choice of modules: the delta is planned on the meta device, and the backbone is not touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from deltahub.checkpoint.address import exact_addresses
from deltahub.checkpoint.config import DeltaConfig
from deltahub.engine.building import Method, build, complete_config
from deltahub.engine.modules import own_modules
from deltahub.errors import ConfigError, DeltaHubError
from deltahub.picker.selection import patterns_of, short_addresses
from deltahub.picker.tree import first_names


@dataclass(frozen=True)
class Choice:
    """Modules chosen by the user.

    Attributes:
        delta_type: the type of delta to put on them.
        names: their real names, in the order of the backbone.
        addresses: the shortest addresses that match exactly these modules.
        exact: for each module an address that matches it alone in this backbone, whatever the other addresses are.
    """

    delta_type: str
    names: tuple[str, ...]
    addresses: tuple[str, ...]
    exact: tuple[str, ...]

    @property
    def line(self) -> str:
        """The argument to pass to get the same modules again."""
        return f"modified_modules=[{', '.join(map(_quoted, self.addresses))}]"


def _quoted(address: str) -> str:
    return repr(address) if '"' in address or "\\" in address else f'"{address}"'


class Preview:
    """Previews of choices of modules.

    Args:
        backbone: the model.
        deltas: the delta types to choose for, each with its options; its modified_modules are ignored.
    """

    def __init__(self, backbone: nn.Module, deltas: Mapping[str, tuple[type[Method], DeltaConfig]]) -> None:
        self.backbone, self.deltas = backbone, deltas
        self._first = first_names(backbone)
        self._every = [name for name, _ in own_modules(backbone) if name]

    def choice(self, names: Sequence[str], delta_type: str) -> Choice:
        """Build the choice of the modules with the given names, without duplicates.

        Raises:
            ConfigError: a name or the type is unknown.
        """
        if unknown := [name for name in names if name not in self._first] or {delta_type} - self.deltas.keys():
            msg = f"{next(iter(unknown))!r} is unknown: expected module names and a delta type of the tree. Reload the page."
            raise ConfigError(msg)
        chosen_names = {self._first[name] for name in names}
        ordered = [name for name in self._every if name in chosen_names]
        each = range(self.deltas[delta_type][0].addresses_each)
        short, exact = short_addresses(ordered, self._every), list(exact_addresses(ordered, self._every).values())
        repeated = [tuple(address for address in addresses for _ in each) for addresses in (short, exact)]
        return Choice(delta_type, tuple(ordered), *repeated)

    def answer(self, choice: Choice) -> dict[str, Any]:
        """Return the preview of a choice as JSON for the page.

        Returns:
            line (the argument to pass), chosen (number of modules), and either refusal (a sentence) or places (patterns with the
            number of modules each matches), modules (how many the delta acts on) and parameters (how many it trains).
        """
        reply: dict[str, Any] = {"line": choice.line, "chosen": len(choice.names)}
        if not choice.names:
            return {**reply, "refusal": "Nothing chosen yet."}
        method, config = self.deltas[choice.delta_type]
        config = replace(config, modified_modules=choice.addresses, common_structure=False)
        try:
            insertions = build(method, self.backbone, complete_config(method, config, self.backbone), empty=True)
        except DeltaHubError as error:
            return {**reply, "refusal": str(error)}
        trained = {id(p): p.numel() for insertion in insertions.values() for p in insertion.parameters()}
        places = [{"pattern": pattern, "count": count} for pattern, count in patterns_of(insertions)]
        return {**reply, "places": places, "modules": len(insertions), "parameters": sum(trained.values())}
