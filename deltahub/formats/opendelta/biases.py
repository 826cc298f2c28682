"""Trained biases shared by several OpenDelta checkpoints.

OpenDelta's BitFit trains the backbone's biases in place, and a checkpoint holds every trained value of every delta on the backbone.
So the checkpoints of BitFit and of a LoRA beside it both hold the biases, which must not be added twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deltahub.engine.ledger import Entry, entries_of, value_of
from deltahub.errors import CheckpointError
from deltahub.log import LOGGER


def starting_value(own: Tensor, saved: Tensor) -> Tensor:
    """A backbone's bias, to be subtracted from a saved one, in float32 or wider: in half precision the difference would be off."""
    return own.detach().to(saved.device, torch.promote_types(own.dtype, torch.float32))


class SharedBiases:
    """The trained biases of the deltas already on a backbone.

    Args:
        delta_type: the type of the delta being read. Two BitFits are alternatives, each with its own biases.
        own: the backbone's own values by name.
    """

    def __init__(self, backbone: nn.Module, delta_type: str, own: Mapping[str, Tensor]) -> None:
        self.backbone, self.own = backbone, own
        self.entries = [e for e in entries_of(backbone) if not e.config.delta_type == delta_type == "bitfit"]
        self.found: dict[str, str] = {}

    def holds(self, name: str, saved: Tensor, *, alone: bool) -> bool:
        """Return whether a delta on the backbone already has the saved value of a tensor, bit for bit.

        Args:
            alone: whether the checkpoint holds a bias without the weight of its layer, as BitFit trains it.

        Raises:
            CheckpointError: a delta has trained the same bias to another value, so both would be added up.
        """
        for entry in self.entries:
            held = self._held(entry, name, saved)
            if held is None:
                continue
            if held:
                self.found[name] = entry.name
                return True
            if alone:
                msg = (
                    f"{name} is in the checkpoint with another value than in the delta {entry.name!r} on the backbone, and the two "
                    "would be added up. Load checkpoints that were saved together, or remove() that delta first."
                )
                raise CheckpointError(msg)
        return False

    def report(self) -> None:
        """Log which tensors were left out."""
        if self.found:
            name, delta = next(iter(self.found.items()))
            text = "%d trained biases are left out: %r on the backbone has them already (%s, ...) and brings them."
            LOGGER.warning(text, len(self.found), delta, name)

    def _held(self, entry: Entry, name: str, saved: Tensor) -> bool | None:
        """Return whether a delta's value of a bias is the saved one; None if the delta has no value."""
        layer, _, leaf = name.rpartition(".")
        if name in self.own and self.own[name].shape != saved.shape:
            return None  # filling the delta refuses it
        if name in self.own and torch.equal(self.own[name].detach().to(saved), saved):
            return None  # not trained
        if entry.config.delta_type == "bitfit" and leaf == "bias" and layer in entry.insertions and name in self.own:
            bias = entry.insertions[layer].state_dict()["bias"]
            return torch.equal((saved - starting_value(self.own[name], saved)).to(bias), bias)
        if leaf == "bias" and name in entry.replaced and f"{layer}.weight" not in entry.replaced:
            return torch.equal(value_of(self.backbone, entry, name).to(saved), saved)
        return None
