"""A training step of a Llama whose layers are quantised by bitsandbytes (nf4, nested), with LoRA and DoRA, beside PEFT's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from attach import pristine
from measure import interleaved, report
from torch import nn
from transformers import LlamaConfig, LlamaModel

from deltahub import LoraModel

LLAMA = LlamaConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1536)
BATCH = 4, 64
TARGETS = ["q_proj", "v_proj"]


def quantised(model: nn.Module) -> nn.Module:
    """Replace the linear layers by layers of bitsandbytes in nf4."""
    import bitsandbytes as bnb

    for module in [*model.modules()]:
        for name, layer in [*module.named_children()]:
            if type(layer) is nn.Linear:
                new = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, False, layer.weight.dtype, quant_type="nf4"
                )
                new.weight = bnb.nn.Params4bit(layer.weight.detach(), quant_type="nf4", module=new)
                setattr(module, name, new.to("cpu"))
    return model


def deltahub(model: nn.Module, use_dora: bool) -> nn.Module:
    """Put a LoRA of DeltaHub on a model."""
    LoraModel(model, modified_modules=TARGETS, use_dora=use_dora).freeze_module()
    return model


def peft(model: nn.Module, use_dora: bool) -> nn.Module:
    """Put a LoRA of PEFT on a model."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, use_dora=use_dora))


def main() -> None:
    """Print the CPU time of both, and their ratio."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = quantised(LlamaModel(LLAMA))
    words = torch.randint(0, 1000, BATCH)

    def stepped(model: Any) -> Callable[[], object]:
        return lambda: (
            model(inputs_embeds=base.get_input_embeddings()(words)).last_hidden_state.square().mean().backward()
        )

    for use_dora in (False, True):
        models = {make.__name__: make(pristine(base), use_dora).train() for make in (peft, deltahub)}
        steps = {name: lambda model=model: stepped(model) for name, model in models.items()}
        method = "DoRA" if use_dora else "LoRA"
        report(f"bitsandbytes nf4 and {method}, a training step, CPU time", interleaved(steps, 20), "peft")


if __name__ == "__main__":
    main()
