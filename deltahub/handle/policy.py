"""The parts of a delta's handle that trainers of policies use: off for a block, the reference, tensors by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import Checkpoint
from deltahub.engine.ledger import Entry
from deltahub.engine.modules import modules_by_name, own_parameters
from deltahub.engine.sharding import full_tensor
from deltahub.errors import ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.peft.method_export import exported
from deltahub.handle.merging import merged_tensors
from deltahub.handle.probe import refuse_others
from deltahub.handle.reference import reference
from deltahub.handle.saving import SaveLoadMixin
from deltahub.handle.switching import off


class PolicyMixin(SaveLoadMixin):
    """Methods for a backbone that is a policy: preference training, and weight synchronisation with an inference server."""

    def off(self) -> AbstractContextManager[None]:
        """Return a context in which the delta is off: ``with delta.off(): backbone(...)`` gives the outputs of the backbone without it.

        Blocks may be nested, and those of several threads may overlap. Other threads that run the backbone meanwhile see it without the
        delta too: `reference` serves those that need both at once. A backward pass through a forward of the block belongs inside it if
        gradient checkpointing recomputes parts. Afterwards the delta is active where it was active before.

        Raises:
            TargetError: the delta was removed, or a module that holds it was replaced.
            MergeError: deltas are merged.
            RouteError: a route is open.
        """
        self.check_places()
        return off(self.backbone_model, self._entry)

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

    def named_tensors(self, format: str = "deltahub") -> Iterator[tuple[str, Tensor]]:  # noqa: A002  (as in export)
        """Iterate over the delta's tensors by the names that another program uses, for example vLLM's `load_weights`.

        Args:
            format: ``"deltahub"``: the names of a checkpoint. ``"peft"``: the names and shapes of an adapter of PEFT, as vLLM takes a LoRA.
                ``"merged"``: the backbone's own names, with the new values of those tensors that the delta changes, in the precision
                of the backbone; to send to a server that holds the bare backbone.

        Raises:
            ConfigError: the format is unknown or cannot hold the delta or its strength, or for ``"merged"`` another delta acts.
            MergeError: ``"merged"``, and the delta cannot be merged, or is merged already.
            TargetError: the delta was removed, or a module that holds it was replaced.
        """
        self.check_places()
        if format == "merged":
            refuse_others(self.backbone_model, self._entry)
            return iter(merged_tensors(self.backbone_model, self._entry).items())
        tensors = {name: full_tensor(tensor) for name, tensor in self.state_dict().items()}
        if format == "peft":
            if self.config.strength != 1:
                msg = f"The names of PEFT carry no strength, and {self.name!r} has {self.config.strength:g}. Set it to 1 with scale(1.0), or use export."
                raise ConfigError(msg)
            tensors = _of_peft(self.backbone_model, self._entry, tensors)
        elif format != "deltahub":
            msg = f"{format!r} is not a format of named tensors; expected 'deltahub', 'peft' or 'merged'."
            raise ConfigError(msg)
        return iter(tensors.items())


def _of_peft(backbone: nn.Module, entry: Entry, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the adapter of PEFT that equals a delta."""
    saved = Checkpoint(Path(), entry.config.to_dict(), None, tensors, {})
    shapes = {name: tuple(parameter.shape) for name, parameter in own_parameters(modules_by_name(backbone))}
    return exported(saved, replace(Backbone.of(saved, backbone), shapes=shapes)).tensors
