"""A batch of 16 rows, each through a LoRA of its own (r=8): one layer, and a model of MiniLM's shape."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from measure import interleaved, report
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from deltahub import LoraModel, LoraSlots, route

ROWS, LENGTH, WIDTH, ROUNDS = 16, 32, 256, 60
MINILM = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


class Stacked(nn.Module):
    """A minimal LoRA for each row of a batch: two stacked matrices, and the number of each row's LoRA."""

    def __init__(self, base: nn.Linear, count: int, rank: int = 8, scale: float = 2.0) -> None:
        super().__init__()
        self.base, self.scale, self.rows = base, scale, torch.arange(count)
        self.down = nn.Parameter(torch.randn(count, base.in_features, rank))
        self.up = nn.Parameter(torch.randn(count, rank, base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(rows, length, n_in)`` to ``(rows, length, n_out)``."""
        low = torch.bmm(x, self.down[self.rows])
        return self.base(x) + self.scale * torch.bmm(low, self.up[self.rows])


class Named(nn.Module):
    """One layer with a name, as PEFT wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(..., width)``."""
        found: Tensor = self.query(x)
        return found


def with_peft(model: nn.Module, targets: list[str]) -> nn.Module:
    """Create a model with 16 LoRAs of PEFT."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    wrapped = get_peft_model(model, config, adapter_name="d0")
    for number in range(1, ROWS):
        wrapped.add_adapter(f"d{number}", config)
    return wrapped.eval()


def with_deltahub(model: nn.Module, targets: list[str]) -> nn.Module:
    """Create a model with 16 LoRAs of DeltaHub."""
    for number in range(ROWS):
        LoraModel(model, modified_modules=targets, name=f"d{number}")
    return model.eval()


def with_slots(model: nn.Module, targets: list[str], names: list[str]) -> tuple[nn.Module, LoraSlots]:
    """Create a model with 16 LoRAs in slots."""
    delta = LoraModel(model, modified_modules=targets)
    slots = LoraSlots(model, ROWS, 8, targets)
    for name in names:
        slots.load(name, delta)
    delta.remove()
    return model.eval(), slots


def stack(model: nn.Module) -> nn.Module:
    """Replace every query and value layer."""
    for name, module in list(model.named_modules()):
        if name.endswith(("query", "value")):
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], Stacked(module, ROWS))
    return model.eval()


def measured(title: str, make: Callable[[], nn.Module], inputs: Tensor, targets: list[str], rounds: int) -> None:
    """Print one table."""
    names = [f"d{number}" for number in range(ROWS)]
    bare, minimal, peft = make().eval(), stack(make()), with_peft(make(), targets)
    slotted, slots = with_slots(make(), targets, names)
    opened, closed = with_deltahub(make(), targets), with_deltahub(make(), targets)

    def routed() -> None:
        with route(closed, names):
            closed(inputs)

    variants: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(inputs),
        "stacked bmm": lambda: minimal(inputs),
        "deltahub, slots": lambda: slotted(inputs),
        "deltahub, one route for all batches": lambda: opened(inputs),
        "deltahub, a route for each batch": routed,
        "peft adapter_names": lambda: peft(inputs, adapter_names=names),
    }
    with torch.no_grad(), route(opened, names), slots.route(names):
        times = interleaved({name: lambda run=run: run for name, run in variants.items()}, rounds)
    report(f"{title}, CPU time", times, "stacked bmm")


def main() -> None:
    """Print both tables."""
    logging.getLogger("deltahub").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for length in (1, LENGTH):
        x = torch.randn(ROWS, length, WIDTH)
        measured(f"16 rows with 16 LoRAs, one layer, {WIDTH} wide, length {length}", Named, x, ["query"], ROUNDS)
    words = torch.randint(0, 1000, (ROWS, LENGTH))
    measured("The same, a model of MiniLM's shape", lambda: BertModel(MINILM), words, ["query", "value"], 7)


if __name__ == "__main__":
    main()
