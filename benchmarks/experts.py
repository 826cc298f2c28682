"""LoRA (r=8) on the experts of a mixture: a forward pass and a training step, beside hand-written code, PEFT and the bare model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
from measure import interleaved, report
from torch import nn
from torch.nn import functional as F
from transformers import MixtralConfig, MixtralModel

from deltahub import LoraModel

CONFIG = MixtralConfig(
    vocab_size=1000,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    num_local_experts=8,
    num_experts_per_tok=2,
)
RANK, SCALE = 8, 2.0
BATCH = (4, 64)


class HandWritten(nn.Module):
    """The grouped forward of transformers with a LoRA in both products."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.experts = experts
        count = experts.num_experts
        for key in ("gate_up_proj", "down_proj"):
            _, n_out, n_in = getattr(experts, key).shape
            setattr(self, f"{key}_A", nn.Parameter(torch.randn(count, RANK, n_in) * 0.02))
            setattr(self, f"{key}_B", nn.Parameter(torch.randn(count, n_out, RANK) * 0.02))

    def linear(self, x: torch.Tensor, key: str, ends: torch.Tensor) -> torch.Tensor:
        """Multiply rows that are sorted by expert."""
        down, up = getattr(self, f"{key}_A"), getattr(self, f"{key}_B")
        low = F.grouped_mm(x, down.mT, offs=ends)
        return F.grouped_mm(x, getattr(self.experts, key).mT, offs=ends) + SCALE * F.grouped_mm(low, up.mT, offs=ends)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return the weighted outputs of the chosen experts, ``(tokens, width)``."""
        experts, order = torch.sort(chosen.reshape(-1))
        ends = torch.bincount(experts, minlength=self.experts.num_experts).cumsum(0).int()
        x = self.linear(hidden[order // chosen.shape[1]], "gate_up_proj", ends)
        x = self.linear(self.experts._apply_gate(x), "down_proj", ends) * shares.reshape(-1)[order, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return x[back].view(*chosen.shape, -1).sum(1)


def by_hand(model: Any) -> Any:
    """Replace the experts of every block."""
    model.requires_grad_(False)
    for layer in model.layers:
        layer.mlp.experts = HandWritten(layer.mlp.experts)
    return model


def deltahub(model: Any) -> Any:
    """Put a LoRA of DeltaHub on the experts."""
    LoraModel(model, lora_r=RANK, modified_modules=["experts"]).freeze_module()
    return model


def peft(model: Any) -> Any:
    """Put a LoRA of PEFT on the experts."""
    from peft import LoraConfig, get_peft_model

    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=[], target_parameters=targets)
    )


def main() -> None:
    """Print the tables."""
    logging.getLogger("deltahub").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    base = MixtralModel(CONFIG)
    base.set_experts_implementation("grouped_mm")
    words = torch.randint(0, 1000, BATCH)
    inputs = base.get_input_embeddings()(words).detach()
    models = {"bare": base, **{make.__name__: make(copy.deepcopy(base)) for make in (by_hand, deltahub, peft)}}

    def forward(model: Any) -> Callable[[], object]:
        return lambda: model(inputs_embeds=inputs, use_cache=False)

    def step(model: Any) -> Callable[[], object]:
        inputs.requires_grad_(True)
        return lambda: model(inputs_embeds=inputs, use_cache=False).last_hidden_state.square().mean().backward()

    size = f"{BATCH[0]} x {BATCH[1]} tokens, CPU time"
    with torch.no_grad():
        times = interleaved({name: lambda model=model: forward(model) for name, model in models.items()}, 15)
    report(f"Forward through LoRA on 8 experts, {size}", times, "by_hand")
    times = interleaved({name: lambda model=model: step(model) for name, model in models.items() if name != "bare"}, 10)
    report(f"Forward and backward, {size}", times, "by_hand")


if __name__ == "__main__":
    main()
