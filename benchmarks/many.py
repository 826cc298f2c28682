"""What a hundred LoRAs (r=8, q and v) on one model of MiniLM's shape cost: loading, switching and saving one more, beside few."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attach import pristine
from measure import OUT, interleaved
from rich.table import Table
from rows import MINILM
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertModel

from deltahub import AutoDeltaModel, LoraModel, deltas_of

MANY, ROUNDS = 100, 15
TARGETS = ["query", "value"]
Variants = dict[str, Callable[[], Callable[[], object]]]


class Switched(nn.Module):
    """As little code as several LoRAs can be: pairs of matrices by name, of which one is on."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.pairs, self.on = base, dict[str, tuple[Tensor, Tensor]](), ""

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(..., n_in)`` to ``(..., n_out)``."""
        down, up = self.pairs[self.on]
        result: Tensor = self.base(x) + 2 * (x @ down.T @ up.T)
        return result


def minimal(model: nn.Module, folder: Path, count: int) -> Variants:
    """Hand-written: load one more, switch, save one."""
    layers = {}
    for name, module in list(model.named_modules()):
        if name.endswith(tuple(TARGETS)):
            layers[name] = Switched(module)
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], layers[name])
            layers[name].pairs = {f"d{n}": (torch.zeros(8, 384), torch.zeros(384, 8)) for n in range(count - 1)}

    def load() -> None:
        tensors = load_file(folder / "delta" / "delta.safetensors")
        for name, layer in layers.items():
            layer.pairs["new"] = tensors[f"{name}.deltas.lora_A"], tensors[f"{name}.deltas.lora_B"]

    def switch() -> None:
        for layer in layers.values():
            layer.on = "d0" if layer.on == "new" else "new"

    def save() -> None:
        pairs = {name: layer.pairs["new"] for name, layer in layers.items()}
        tensors = {f"{name}.{side}": pair[side] for name, pair in pairs.items() for side in (0, 1)}
        save_file(tensors, folder / "minimal.safetensors")

    return {"load": lambda: load, "switch": lambda: switch, "save": lambda: save}


def deltahub(model: nn.Module, folder: Path, count: int, *, others_on: bool, check: bool) -> Variants:
    """DeltaHub: the same."""
    for number in range(count - 1):
        LoraModel(model, modified_modules=TARGETS, name=f"d{number}")
        if not others_on and number:
            deltas_of(model)[f"d{number}"].detach()
    first = deltas_of(model).get("d0")

    def load() -> Callable[[], object]:
        if "new" in (there := deltas_of(model)):
            there["new"].remove()
        return lambda: AutoDeltaModel.from_finetuned(folder / "delta", model, check_hash=check, name="new")

    def switch() -> Callable[[], object]:
        on, off = (
            (deltas_of(model)["new"], first) if deltas_of(model)["new"].attached else (first, deltas_of(model)["new"])
        )
        on.attach()
        off.detach()
        return lambda: (on.detach(), off.attach())

    return {
        "load": load,
        "switch": switch,
        "save": lambda: lambda: deltas_of(model)["new"].save_finetuned(folder / "saved"),
    }


def peft(model: nn.Module, folder: Path, count: int) -> Variants:
    """PEFT: the same."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS)
    wrapped: Any = get_peft_model(model, config, adapter_name="d0")
    for number in range(1, count - 1):
        wrapped.add_adapter(f"d{number}", config, low_cpu_mem_usage=True)
    if not (folder / "peft").exists():
        wrapped.save_pretrained(folder / "peft", selected_adapters=["d0"])

    def load() -> Callable[[], object]:
        if "new" in wrapped.peft_config:
            wrapped.delete_adapter("new")
        return lambda: wrapped.load_adapter(folder / "peft" / "d0", "new")

    def switch() -> Callable[[], object]:
        other = "d0" if wrapped.active_adapter == "new" else "new"
        return lambda: wrapped.set_adapter(other)

    return {
        "load": load,
        "switch": switch,
        "save": lambda: lambda: wrapped.save_pretrained(folder / "saved_peft", selected_adapters=["new"]),
    }


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    logging.getLogger("deltahub").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    model = BertModel(MINILM).eval()
    kinds: dict[str, Callable[[nn.Module, Path, int], Variants]] = {
        "minimal": minimal,
        "deltahub, others detached": lambda *a: deltahub(*a, others_on=False, check=False),
        "deltahub, others attached": lambda *a: deltahub(*a, others_on=True, check=False),
        "deltahub, backbone checked": lambda *a: deltahub(*a, others_on=False, check=True),
        "peft": peft,
    }
    table = Table("", *(f"{what}: ms, x few" for what in ("load", "switch", "save")), box=None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        delta = LoraModel(pristine(model), modified_modules=TARGETS)
        delta.freeze_module()
        delta.save_finetuned(folder / "delta")
        prepared = {
            (k, count): make(pristine(model), folder, count) for k, make in kinds.items() for count in (2, MANY)
        }
        times = {
            what: interleaved({f"{k} {count}": v[what] for (k, count), v in prepared.items()}, ROUNDS)
            for what in ("load", "switch", "save")
        }
    for kind in kinds:
        cells = [(times[what][f"{kind} {MANY}"], times[what][f"{kind} 2"]) for what in times]
        table.add_row(kind, *(f"{many * 1e3:.2f}, {many / few:.2f}" for many, few in cells))
    OUT.print(f"[bold]The {MANY}th LoRA beside the second, CPU time[/bold]")
    OUT.print(table, "")


if __name__ == "__main__":
    main()
