"""A delta on a backbone: where it acts, whether, and how strongly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.engine.insertion import Insertion
from deltahub.engine.ledger import Entry, ledger_holding
from deltahub.engine.site import delta_key
from deltahub.handle import merging, switching
from deltahub.handle.merging import MergeReport
from deltahub.handle.reference import reference
from deltahub.handle.strength import refuse_block, scaled, set_strength


class Attachment:
    """A delta on a backbone, switched, scaled and merged.

    Args:
        backbone_model: the backbone, or the part of a model that the delta was put on.
        entry: the delta's entry in the ledger there.
    """

    def __init__(self, backbone_model: nn.Module, entry: Entry) -> None:
        self.backbone_model = backbone_model
        self._entry = entry

    @property
    def name(self) -> str:
        """The delta's name on this backbone."""
        return self._entry.name

    @property
    def config(self) -> DeltaConfig:
        """The delta's configuration."""
        return self._entry.config

    @property
    def insertions(self) -> Mapping[str, Insertion]:
        """The delta's insertions by real module name."""
        return self._entry.insertions

    @property
    def attached(self) -> bool:
        """Whether the delta is active."""
        return self._entry.attached

    @property
    def merged(self) -> bool:
        """Whether the delta is merged into the backbone's weights."""
        return self._entry.name in ledger_holding(self.backbone_model, self._entry).merged

    @property
    def strength(self) -> float:
        """The factor of what the delta changes, as it would be saved: 1 unless `scale` set another."""
        return self.config.strength

    def check_places(self) -> None:
        """Check that the modules and tensors that the delta was put on are still in the backbone.

        Raises:
            TargetError: the delta was removed, or a module that holds it or a tensor that it replaced has been exchanged since.
        """
        switching.check_places(self.backbone_model, self._entry)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the delta's own parameters, named as in a checkpoint: ``<address>.deltas.<parameter>``."""
        for address, insertion in self.insertions.items():
            for key, parameter in insertion.named_parameters():
                yield delta_key(address, key), parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the delta's own parameters."""
        return (parameter for _, parameter in self.named_parameters())

    # ----- switching -----

    def attach(self, module: nn.Module | None = None, reset_state_dict: bool = True) -> None:
        """Activate the delta again, in its old place among the others.

        Args:
            module: only insertions inside this module of the backbone; by default all.
            reset_state_dict: whether `state_dict()` of the backbone leaves out frozen tensors again, if
                `freeze_module` had it do so.

        Raises:
            TargetError: the delta was removed, or a module that holds it was replaced.
            AddressError: `module` is not part of the backbone.
            MergeError: deltas are merged.
            RouteError: a route is open.
        """
        self.check_places()
        switching.attach(self.backbone_model, self._entry, module, reset_state_dict)

    def detach(self, module: nn.Module | None = None, reset_state_dict: bool = True) -> None:
        """Deactivate the delta; without other deltas, the backbone is bit for bit what it was.

        Args:
            module: only insertions inside this module of the backbone; by default all.
            reset_state_dict: whether `state_dict()` of the backbone is complete again once no delta is attached.

        Raises:
            TargetError, AddressError, MergeError, RouteError: as for `attach`.
        """
        self.check_places()
        switching.detach(self.backbone_model, self._entry, module, reset_state_dict)

    def remove(self) -> None:
        """Remove the delta for good; after the last one, the backbone is as if there had never been any.

        Call `state_dict()` of the handle before, not after.

        Raises:
            TargetError, MergeError, RouteError: as for `attach`.
        """
        self.detach()
        switching.forget(self.backbone_model, self._entry)

    # ----- the backbone without the delta -----

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the delta is off: ``with delta.off(): backbone(...)`` gives the outputs of the backbone without it.

        Blocks may be nested, and those of several threads may overlap. Other threads that run the backbone meanwhile see it without the
        delta too: `reference` serves those that need both at once. A backward pass through a forward of the block belongs inside it if
        gradient checkpointing recomputes parts. Afterwards the delta is active where it was active before. A copy that is made in the
        block stays as it is: the delta is detached there, until `attach` is called on the copy's own handle.

        Raises:
            TargetError: the delta was removed, or a module that holds it was replaced.
            MergeError: deltas are merged.
            RouteError: a route is open.
        """
        self.check_places()
        return switching.off(self.backbone_model, self._entry)

    def reference(self, model: nn.Module | None = None) -> Any:
        """Return the backbone without this delta as a model of its own, in eval mode, which shares its tensors and so costs no memory.

        It keeps the other deltas, and of layers that the delta trains as a whole it has the backbone's values. Policy and reference may run
        at the same time. Make it after `freeze_module`, and before trainers, compilation or sharding; it answers only while none of its
        tensors trains. Do not train it, and do not synchronise it with the policy (`sync_ref_model` of TRL).

        Args:
            model: a model around the backbone, to have the reference of; by default the backbone.

        Raises:
            ConfigError: a shared tensor trains, the backbone is sharded, or the forward of a module has been replaced.
            AddressError: the backbone is not part of `model`.
            TargetError: the delta was removed, or a module that holds it was replaced.
            MergeError: deltas are merged.
            RouteError: a route is open.
        """
        self.check_places()
        return reference(self.backbone_model, self._entry, model)

    # ----- strength -----

    def scale(self, strength: float) -> None:
        """Set the factor of what the delta changes; it is saved with the delta.

        Args:
            strength: 1 for the delta as trained, 0 for the bare backbone; more than 1 and negative values are valid too.

        Raises:
            ConfigError: it is not a finite number, the method cannot act by a share (prefixes, soft prompts), or a `scaled` block is open.
            MergeError: deltas are merged.
            TargetError: the delta was removed.
        """
        set_strength(self.backbone_model, self._entry, strength)

    def scaled(self, strength: float) -> AbstractContextManager[None]:
        """Give the delta another strength for the duration of a block, in all threads; what is saved stays as it was.

        With gradient checkpointing, the backward pass belongs inside the block as well, because it recomputes parts. Two blocks of one delta,
        in one thread or in several, are refused. A copy that is made in the block keeps its strength, and is saved with it.

        Args:
            strength: as for `scale`; it replaces the delta's own, and does not multiply it.

        Raises:
            ConfigError: as for `scale`, or another block of the delta is open.
            MergeError, TargetError: as for `scale`, when the block begins.
        """
        return scaled(self.backbone_model, self._entry, strength)

    # ----- merging -----

    def merge(self, *, requantise: bool = False) -> MergeReport:
        """Merge the delta into the backbone's weights, so that it costs nothing in a forward pass.

        The original bytes are kept in memory for `unmerge`. Until then no delta can be added, attached or detached.

        Args:
            requantise: quantise the sum of a quantised weight and the update again, with the settings of the layer. That rounds the
                update to the few bits of the layer, by an error that the result tells for each module.

        Returns:
            The changed tensors, with the distance of each from its exact value after rounding.

        Raises:
            MergeError: the delta is merged already or detached, a `scaled` block is open, its method cannot be merged, a weight is tied to another
                module's or quantised, or another delta acts before it in the same place. Nothing was changed.
            TargetError: the delta was removed, or a module that holds it was replaced. Nothing was changed.
            RouteError: a route is open.
        """
        self.check_places()
        refuse_block(self._entry)
        return merging.merge(self.backbone_model, self._entry, requantise=requantise)

    def unmerge(self) -> None:
        """Take the delta out of the weights; after the last one, every byte is as before the first merge.

        Raises:
            MergeError: the delta is not merged, or another delta was merged on top of it. Nothing was changed.
            TargetError: as for `merge`.
        """
        self.check_places()
        merging.unmerge(self.backbone_model, self._entry)


def handle_of(backbone: nn.Module, entry: Entry) -> Any:
    """Make the handle of an entry in a backbone's ledger, without the `__init__` of its class."""
    handle: Attachment = object.__new__(entry.handle)
    Attachment.__init__(handle, backbone, entry)
    return handle
