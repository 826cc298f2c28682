"""What combining two LoRAs costs beside PEFT's svd, and extracting a LoRA from two models beside a full SVD, at what error."""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import OUT, interleaved
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from deltahub import combine, extract

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
RANK, WEIGHTS = 8, (0.7, 0.3)
Updates = Mapping[str, Tensor]


def backbone(hidden: int, layers: int) -> LlamaForCausalLM:
    """Return a Llama with random weights."""
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "vocab_size": 500}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=8)).eval()


def error_of(updates: Updates, exact: Updates) -> float:
    """Return the relative error of all updates together."""
    lost = sum(float((updates[name].double() - exact[name]).norm() ** 2) for name in exact)
    return float((lost / sum(float(exact[name].norm() ** 2) for name in exact)) ** 0.5)


def written(folder: Path) -> dict[str, Tensor]:
    """Return the updates of a LoRA that `combine` or `extract` wrote, whose scale is 1."""
    tensors = load_file(folder / "delta.safetensors")
    modules = [name.removesuffix(".deltas.lora_A") for name in tensors if name.endswith(".lora_A")]
    return {name: tensors[f"{name}.deltas.lora_B"] @ tensors[f"{name}.deltas.lora_A"] for name in modules}


def identity(call: Callable[[], object]) -> Callable[[], object]:
    """Return what is timed: there is nothing to prepare."""
    return call


def combining(folder: Path, hidden: int, layers: int, rounds: int) -> None:
    """Print what two LoRAs of PEFT cost to combine, from files to a file here, in memory in PEFT."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=16, target_modules=TARGETS, init_lora_weights=False)
    model: Any = get_peft_model(backbone(hidden, layers), config, adapter_name="a")
    model.add_adapter("b", config)
    model.save_pretrained(folder)
    numbers = iter(range(10**6))
    exact: dict[str, Tensor] = {}
    layers_of = {name: module for name, module in model.named_modules() if name.endswith(tuple(TARGETS))}
    for name, layer in layers_of.items():
        changes = [layer.get_delta_weight(one).detach().double() for one in ("a", "b")]
        exact[name.removeprefix("base_model.model.")] = WEIGHTS[0] * changes[0] + WEIGHTS[1] * changes[1]

    def ours(method: str, rank: int | None) -> None:
        pair = [folder / "a", folder / "b"]
        combine(
            pair, folder / f"{method}{rank}", method=method, weights=WEIGHTS, rank=rank, check_hash=False, force=True
        )

    def theirs(kind: str, rank: int | None) -> None:
        options = {"svd_rank": rank} if kind == "svd" else {}
        model.add_weighted_adapter(["a", "b"], list(WEIGHTS), f"{kind}{rank}_{next(numbers)}", kind, **options)

    variants: dict[str, Callable[[], object]] = {
        f"deltahub linear, rank {RANK}": partial(ours, "linear", RANK),
        "deltahub linear, exact": partial(ours, "linear", None),
        f"peft svd, rank {RANK}": partial(theirs, "svd", RANK),
        f"peft svd, rank {2 * RANK}": partial(theirs, "svd", 2 * RANK),
        "peft linear": partial(theirs, "linear", None),
    }
    times = interleaved({name: partial(identity, call) for name, call in variants.items()}, rounds)
    errors = {
        f"deltahub linear, rank {RANK}": error_of(written(folder / f"linear{RANK}"), exact),
        "deltahub linear, exact": error_of(written(folder / "linearNone"), exact),
    }
    for name, adapter in ((n, a) for n in variants if n.startswith("peft") for a in model.peft_config):
        kind = name.replace("peft ", "").replace(", rank ", "") if "rank" in name else "linearNone"
        if adapter.startswith(f"{kind}_"):
            updates = {
                n.removeprefix("base_model.model."): m.get_delta_weight(adapter).detach() for n, m in layers_of.items()
            }
            errors[name] = error_of(updates, exact)
    show(f"Two LoRAs of rank {RANK} on {len(exact)} layers of {hidden} combined", times, errors)


def extracting(folder: Path, hidden: int, layers: int, rounds: int) -> None:
    """Print what a LoRA of rank 16 costs to extract from two models, beside a full SVD of each change."""
    model = backbone(hidden, layers)
    model.save_pretrained(folder / "base")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 2:  # a change as training makes: a few strong directions and noise
                strong = torch.randn(len(value), 12) @ torch.randn(12, value.shape[1])
                value.add_(1e-3 * strong + 1e-3 * torch.randn_like(value))
    model.save_pretrained(folder / "tuned")
    changes = {
        n.removesuffix(".weight"): (v - before[n])
        for n, v in model.state_dict().items()
        if v.dim() == 2 and "embed" not in n
    }
    full: dict[str, Tensor] = {}

    def by_svd() -> None:
        tensors: dict[str, Tensor] = {}
        bases, tuned = (load_file(folder / name / "model.safetensors") for name in ("base", "tuned"))
        for name in changes:
            u, s, vt = torch.linalg.svd(tuned[f"{name}.weight"] - bases[f"{name}.weight"], full_matrices=False)
            up, down = (u[:, :16] * s[:16]).contiguous(), vt[:16].contiguous()
            tensors |= {f"{name}.up": up, f"{name}.down": down}
            full[name] = up @ down
        save_file(tensors, folder / "svd.safetensors")

    variants: dict[str, Callable[[], object]] = {
        "deltahub extract": lambda: extract(folder / "base", folder / "tuned", folder / "delta", rank=16, force=True),
        "full SVD": by_svd,
    }
    times = interleaved({name: partial(identity, call) for name, call in variants.items()}, rounds)
    exact = {name: change.double() for name, change in changes.items()}
    errors = {"deltahub extract": error_of(written(folder / "delta"), exact), "full SVD": error_of(full, exact)}
    show(f"A LoRA of rank 16 extracted from a model with {len(exact)} layers of {hidden}", times, errors)


def show(title: str, times: Mapping[str, float], errors: Mapping[str, float]) -> None:
    """Print times, their ratio to the first, and errors."""
    base = next(iter(times.values()))
    table = Table("", "CPU ms", "x the first", "relative error", box=None)
    for name, value in times.items():
        table.add_row(name, f"{value * 1e3:.1f}", f"{value / base:.1f}", f"{errors[name]:.2e}")
    OUT.print(f"[bold]{title}[/bold]")
    OUT.print(table, "")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024, help="width of the layers")
    parser.add_argument("--layers", type=int, default=2, help="number of blocks")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("deltahub").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        combining(Path(name) / "combine", options.hidden, options.layers, options.rounds)
        extracting(Path(name) / "extract", options.hidden, options.layers, options.rounds)


if __name__ == "__main__":
    main()
