"""Attaching and detaching deltas: the cost depends on the delta itself, not on the number of others that are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from deltahub.engine.guards import note_compiled, refuse_busy, refuse_merged, refuse_routed
from deltahub.engine.ledger import check_tensors, entries_of
from deltahub.engine.modules import module_at
from deltahub.engine.offloading import device_of
from deltahub.engine.sharding import reshard
from deltahub.engine.site import eject, holds, site_of
from deltahub.errors import TargetError
from deltahub.handle.freezing import prefix_of

if TYPE_CHECKING:
    from deltahub.engine.insertion import Insertion
    from deltahub.engine.ledger import Entry, Ledger


class SwitchMixin:
    """The part of a delta model that attaches, detaches and removes the delta."""

    backbone_model: nn.Module

    if TYPE_CHECKING:
        _entry: Entry

        @property
        def name(self) -> str: ...  # noqa: D102
        @property
        def insertions(self) -> Mapping[str, Insertion]: ...  # noqa: D102
        @property
        def _ledger(self) -> Ledger: ...

    def attach(self, module: nn.Module | None = None, reset_state_dict: bool = True) -> None:
        """Activate the delta again, in its old place among the others.

        Args:
            module: only insertions inside this module of the backbone; by default all.
            reset_state_dict: whether `state_dict()` of the backbone leaves out frozen tensors again, if
                `freeze_module` had it do so.
        """
        self._turn(True, module)
        if reset_state_dict:
            self._ledger.only_trainable = self._ledger.filter_asked

    def detach(self, module: nn.Module | None = None, reset_state_dict: bool = True) -> None:
        """Deactivate the delta; without other deltas, the backbone is bit for bit what it was.

        Args:
            module: only insertions inside this module of the backbone; by default all.
            reset_state_dict: whether `state_dict()` of the backbone is complete again once no delta is attached.
        """
        self._turn(False, module)
        if reset_state_dict and not any(entry.attached for entry in entries_of(self.backbone_model)):
            self._ledger.only_trainable = False

    def remove(self) -> None:
        """Remove the delta for good; after the last one, the backbone is as if there had never been any.

        Call `state_dict()` of the handle before, not after.

        Raises:
            MergeError: deltas are merged.
        """
        self.detach()
        for address in self.insertions:
            eject(module_at(self.backbone_model, address), self.name)
        self._ledger.forget(self.backbone_model, self._entry)
        note_compiled(module_at(self.backbone_model, address) for address in self.insertions)

    def _turn(self, on: bool, module: nn.Module | None) -> None:
        ledger = self._ledger  # raises if the delta was removed
        refuse_merged(self.backbone_model)
        refuse_routed(self.backbone_model)
        prefix = prefix_of(self.backbone_model, module)
        self.check_places()
        refuse_busy(site_of(module_at(self.backbone_model, address)) for address in self.insertions)
        reshard(self.backbone_model)
        for address, insertion in self.insertions.items():
            if f"{address}.".startswith(prefix):
                target = module_at(self.backbone_model, address)
                if on:
                    insertion.to(device_of(target, self.backbone_model)).train(target.training)
                site_of(target).turn(self.name, on)
        if module is None:
            ledger.switch(self.backbone_model, self._entry, on)

    def check_places(self) -> None:
        """Check that the modules and tensors that the delta was put on are still in the backbone.

        Raises:
            TargetError: a module that holds the delta, or a tensor that it replaced, has been exchanged since.
        """
        for address, insertion in self.insertions.items():
            if not holds(self.backbone_model, address, self.name, insertion):
                msg = (
                    f"{address} was replaced after the delta {self.name!r} was put on it, so the delta no longer acts "
                    "there. Change the backbone's modules before adding deltas."
                )
                raise TargetError(msg)
        check_tensors(self.backbone_model, self._entry)
