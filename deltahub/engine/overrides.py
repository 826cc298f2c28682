"""Backbone tensors for which deltas have their own values, for example a trained classifier head.

The record of such a tensor is stored at every module that holds it. So a handle on a part of a model and one on the whole
find the same record, and a copy of either has its own. The live tensor holds the active value; the record holds the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.modules import module_at, modules_by_name, own_modules
from deltahub.engine.sharding import assign, live_value
from deltahub.errors import MergeError

ATTRIBUTE: Final = "_deltahub_overrides"


@dataclass(eq=False)
class Override:
    """The values of a backbone tensor.

    Attributes:
        base: the backbone's own value while the live tensor holds another; None while the own value is live, so that changes
            to the backbone's tensor count as the backbone's.
        values: by the delta's serial number; None for the delta whose value is live.
        attached: serial numbers of the active deltas.
        codes: the backbone's own codes of a quantised weight (`engine.quantised`) while deltas are merged into new ones.
    """

    base: Tensor | None = None
    values: dict[int, Tensor | None] = field(default_factory=dict)
    attached: set[int] = field(default_factory=set)
    codes: Any = None

    @property
    def owner(self) -> int | None:
        """The serial number of the delta whose value is live; None for the backbone's own or a merged one."""
        return next((serial for serial, value in self.values.items() if value is None), None)

    @property
    def merged(self) -> bool:
        """Whether deltas are merged into the live tensor."""
        return self.codes is not None or (self.base is not None and self.owner is None)

    def value(self, serial: int, live: Tensor) -> Tensor:
        """Return the value of a delta."""
        value = self.values[serial]
        return live_value(live) if value is None else value

    def own(self, live: Tensor) -> Tensor:
        """Return the backbone's own value."""
        return live_value(live) if self.base is None else self.base

    @torch.no_grad()
    def claim(self, serial: int, value: Tensor | None, live: Tensor, *, attached: bool) -> None:
        """Give a delta its own value of the tensor.

        Args:
            value: None to start from the current value of the delta, or else of the live tensor.
        """
        if serial in self.values and self.values[serial] is None:
            if value is not None:
                assign(live, value)
        elif value is not None or serial not in self.values:
            self.values[serial] = (live_value(live) if value is None else value.detach()).clone()
        self.switch(serial, attached, live)

    def switch(self, serial: int, on: bool, live: Tensor) -> None:
        """Activate or deactivate a delta's value."""
        (self.attached.add if on else self.attached.discard)(serial)
        self._settle(live)

    def drop(self, serial: int, live: Tensor) -> None:
        """Forget a delta's value."""
        self.switch(serial, False, live)
        del self.values[serial]

    @torch.no_grad()
    def _settle(self, live: Tensor) -> None:
        """Set the live tensor to the value of the last attached delta, or else the backbone's own."""
        current, next_owner = self.owner, max(self.attached, default=None)
        if next_owner == current:
            return
        base_value = live_value(live).clone() if current is None else self.base
        if current is not None:
            self.values[current] = live_value(live).clone()
        value = base_value if next_owner is None else self.values[next_owner]
        assert value is not None  # only the current owner's value is not stored
        assign(live, value)
        self.base = None if next_owner is None else base_value
        if next_owner is not None:
            self.values[next_owner] = None


def overrides(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Override]]:
    """Yield the records of a backbone by tensor name; that of a tied tensor under each of its names.

    Args:
        modules: the backbone's modules by name.
    """
    for address, module in modules.items():
        for key, record in module.__dict__.get(ATTRIBUTE, {}).items():
            yield (f"{address}.{key}" if address else key), record


def override_of(backbone: nn.Module, name: str) -> Override | None:
    """Return the record of a tensor, or None."""
    address, _, key = name.rpartition(".")
    record: Override | None = module_at(backbone, address).__dict__.get(ATTRIBUTE, {}).get(key)
    return record


def own_values(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the backbone's own values of the tensors that hold another value now, by name."""
    return {name: record.base for name, record in overrides(modules_by_name(backbone)) if record.base is not None}


def refuse_requantised(backbone: nn.Module) -> None:
    """Raise if deltas are merged into codes of quantised layers, which do not show the backbone's own values.

    Raises:
        MergeError: some are.
    """
    for name, record in overrides(modules_by_name(backbone)):
        if record.codes is not None:
            msg = f"A delta is merged into the codes of {name}, so the backbone cannot be identified. Call unmerge() first."
            raise MergeError(msg)


def overrides_for(backbone: nn.Module, names: Collection[str]) -> dict[str, Override]:
    """Return the records of some tensors, creating missing ones."""
    names_by_id = {id(tensor_at(backbone, name)): name for name in names}
    holders: dict[str, list[tuple[nn.Module, str]]] = {}
    for _, module in own_modules(backbone) if names_by_id else ():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if id(tensor) in names_by_id:
                holders.setdefault(names_by_id[id(tensor)], []).append((module, key))
    records_by_name = {}
    for name, places in holders.items():
        records = (module.__dict__.get(ATTRIBUTE, {}).get(key) for module, key in places)
        records_by_name[name] = next((record for record in records if record is not None), None) or Override()
        for module, key in places:
            module.__dict__.setdefault(ATTRIBUTE, {})[key] = records_by_name[name]
    return records_by_name


def drop_empty(backbone: nn.Module) -> None:
    """Remove the empty records."""
    for _, module in own_modules(backbone):
        if ATTRIBUTE in module.__dict__:
            records = module.__dict__[ATTRIBUTE]
            full = {key: record for key, record in records.items() if record.values or record.merged}
            if full:
                module.__dict__[ATTRIBUTE] = full
            else:
                del module.__dict__[ATTRIBUTE]


def forget_values(backbone: nn.Module) -> None:
    """Remove all records; the live values stay."""
    for _, module in own_modules(backbone):
        module.__dict__.pop(ATTRIBUTE, None)


def tensor_at(backbone: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its name."""
    prefix, _, key = name.rpartition(".")
    tensor = getattr(module_at(backbone, prefix), key)
    assert isinstance(tensor, Tensor)
    return tensor
