"""The LoRA of a delta layer by layer, for the formats of image models, which hold nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltahub.checkpoint.address import rank_and_scale
from deltahub.checkpoint.checkpoint import Checkpoint
from deltahub.errors import ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.diffusers.keys import BIAS, DOWN, MAGNITUDE, UP
from deltahub.formats.peft.adapter import MODEL
from deltahub.formats.peft.method_export import exported


@dataclass(frozen=True)
class Update:
    """The update of a layer, ``scale * up @ down``.

    Attributes:
        down: ``(r, n_in)``, or ``(r, n_in, *kernel)`` of a convolution.
        up: ``(n_out, r)``, or ``(n_out, r, 1, 1)`` of a convolution.
        scale: the factor of the update and of the bias.
        bias: of B, ``(n_out,)``, or None.
        magnitude: DoRA's, ``(n_out,)``, or None.
    """

    down: Tensor
    up: Tensor
    scale: float
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return len(self.down)

    def scaled(self, tensor: Tensor) -> Tensor:
        """Multiply a tensor by the scale, in float32 if its own precision cannot hold the result."""
        product = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * self.scale
        narrow = product.to(tensor.dtype)
        return narrow if torch.equal(narrow.to(product.dtype), product) else product


def updates_of(saved: Checkpoint, backbone: Backbone, program: str) -> tuple[dict[str, Update], dict[str, Any]]:
    """Return the updates of a LoRA by layer, and its options as PEFT writes them.

    Args:
        program: the name of the program that reads the file, for messages.

    Raises:
        ConfigError: it is not a LoRA, holds more than one, or the backbone is needed.
        CheckpointError: its tensors are not those that its config announces.
    """
    kind = saved.document["delta_type"]
    if kind != "lora":
        msg = f"{program} loads LoRA only, and this is a {kind}. Load it with deltahub."
        raise ConfigError(msg)
    adapter = exported(saved, backbone)
    leaves: dict[str, dict[str, Tensor]] = {}
    beyond = list(adapter.modules_to_save)
    for name, tensor in adapter.tensors.items():
        layer, leaf = _split(name.removeprefix(MODEL))
        if leaf:
            leaves.setdefault(layer, {})[leaf] = tensor
        else:
            beyond.append(layer)
    if beyond:
        msg = f"{program} loads LoRA on linear layers and convolutions only, and this delta also changes {beyond[0]}. Load it with deltahub."
        raise ConfigError(msg)
    updates = {
        layer: Update(own[DOWN], own[UP], rank_and_scale(saved.document, layer)[1], own.get(BIAS), own.get(MAGNITUDE))
        for layer, own in sorted(leaves.items())
    }
    return updates, adapter.options


def _split(name: str) -> tuple[str, str]:
    """Return the layer and the own name of one of PEFT's tensors; no own name for one that is of no LoRA on such a layer."""
    for end, leaf in (
        (".lora_A.weight", DOWN),
        (".lora_B.weight", UP),
        (f".{BIAS}", BIAS),
        (f".{MAGNITUDE}", MAGNITUDE),
    ):
        if name.endswith(end):
            return name.removesuffix(end), leaf
    return name, ""
