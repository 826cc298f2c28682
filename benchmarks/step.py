"""LoRA (r=8) at work: one layer, one token through all linear layers, and a training step of MiniLM's shape and a Llama (q and v)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from attach import MinimalLora, pristine
from measure import OUT, interleaved, report
from rows import MINILM, WIDTH, Named
from torch import nn
from transformers import BertModel, LlamaConfig, LlamaModel

from deltahub import LoraModel
from deltahub.engine.structure.names import StructureMap

LLAMA = LlamaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
SMALL_LLAMA = LlamaConfig(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=1408)
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CALLS = 50  # of one layer, timed together


def minimal(model: nn.Module, targets: list[str]) -> nn.Module:
    """Create a frozen model with a trainable hand-written LoRA."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in targets:
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], MinimalLora(module))
    return model


def deltahub(model: nn.Module, targets: list[str]) -> nn.Module:
    """Create the same with DeltaHub."""
    LoraModel(model, modified_modules=targets).freeze_module()
    return model


def peft(model: nn.Module, targets: list[str]) -> nn.Module:
    """Create the same with PEFT."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets))


def variants(base: nn.Module, targets: list[str]) -> dict[str, nn.Module]:
    """Copy one model three times, with the same weights."""
    return {make.__name__: make(pristine(base), targets) for make in (minimal, deltahub, peft)}


def one_layer() -> None:
    """Print how long one layer takes for one token."""
    base = Named().eval()
    x = torch.randn(1, 1, WIDTH)
    models = {"bare": base, **variants(base, ["query"])}
    models["peft's layer alone"] = models["peft"].base_model.model.query
    models |= {name: models[name].query for name in ("minimal", "deltahub")}
    calls = {
        name: lambda model=model: lambda: [model(x) for _ in range(CALLS)]
        for name, model in models.items()
        if name != "peft"
    }
    with torch.no_grad():
        times = {name: value / CALLS for name, value in interleaved(calls, 60).items()}
    report(f"One LoRA layer, {WIDTH} wide, one token, CPU time", times, "minimal", 1e-6, "us")


def one_token() -> None:
    """Print how long one token takes through a Llama with LoRA on all linear layers."""
    base = LlamaModel(SMALL_LLAMA).eval()
    x = torch.randn(1, 1, SMALL_LLAMA.hidden_size)
    models: dict[str, Any] = {"bare": base, **variants(base, ALL_LINEAR)}
    calls = {
        name: lambda model=model: lambda: model(inputs_embeds=x, use_cache=False) for name, model in models.items()
    }
    with torch.no_grad():
        times = interleaved(calls, 100)
    report("One token through all linear layers of a Llama of 8 blocks, 512 wide, CPU time", times, "minimal")


def whole_step(title: str, base: nn.Module, batch: tuple[int, int], targets: list[str], rounds: int) -> None:
    """Print how long forward and backward take in training mode."""
    words = torch.randint(0, 1000, batch)
    models: dict[str, Any] = {name: model.train() for name, model in variants(base, targets).items()}

    def stepped(model: Any) -> Callable[[], object]:
        return lambda: (
            model(inputs_embeds=base.get_input_embeddings()(words)).last_hidden_state.square().mean().backward()
        )

    steps = {name: lambda model=model: stepped(model) for name, model in models.items()}
    report(
        f"{title}, {batch[0]} x {batch[1]} tokens, forward and backward, CPU time",
        interleaved(steps, rounds),
        "minimal",
    )


def places(base: nn.Module) -> None:
    """Print how long the first structure of a backbone and the first LoRA on it take, as a user experiences it."""
    start = time.process_time()
    StructureMap.of(base).common_name("")
    middle = time.process_time()
    LoraModel(base, modified_modules=["attn.q", "attn.v"])
    end = time.process_time()
    OUT.print("[bold]Llama of 0.45 billion, CPU time[/bold]")
    OUT.print(f" structure {(middle - start) * 1e3:.1f} ms, insertion {(end - middle) * 1e3:.1f} ms (limit 50)\n")


def main() -> None:
    """Print the tables."""
    logging.getLogger("deltahub").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    one_layer()
    one_token()
    whole_step("MiniLM's shape", BertModel(MINILM), (8, 32), ["query", "value"], 15)
    llama = LlamaModel(LLAMA)
    places(pristine(llama))
    whole_step("Llama of 0.45 billion", llama, (2, 16), ["q_proj", "v_proj"], 5)


if __name__ == "__main__":
    main()
