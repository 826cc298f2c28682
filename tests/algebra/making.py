"""Small deltas to compute with, written without a model, and their updates by the formula."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_record import Fingerprint, Leaf

SHAPES = {"block.query": (5, 4), "block.value": (3, 6)}
RECORD = Fingerprint(
    (
        Leaf("block.query.weight", "float32", (5, 4), "1" * 32),
        Leaf("block.value.weight", "float32", (3, 6), "2" * 32),
        Leaf("head.weight", "float32", (2, 3), "3" * 32),
    )
)


def numbers(*shape: int, seed: int) -> Tensor:
    """Random values, the same on every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, options: Mapping[str, Any], tensors: Mapping[str, Tensor], record: Fingerprint | None) -> Path:
    """Write a delta of any method."""
    document = {
        "format_version": 1,
        "backbone_class": "Backbone",
        "backbone_checkpoint_name": "acme/backbone",
        "backbone_hash": record.hash if record else None,
        "unfrozen_modules": ["deltas"],
        **options,
    }
    checkpoint.write(folder, document, tensors, record, "# A delta\n", save_file)
    return folder


def write_lora(
    folder: Path,
    seed: int = 0,
    *,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    ranks: Mapping[str, int] | None = None,
    trained: Mapping[str, Tensor] | None = None,
    record: Fingerprint | None = RECORD,
    **options: Any,
) -> Path:
    """Write a LoRA with random factors.

    Args:
        ranks: of single modules; the others have `lora_r`.
        trained: tensors of the backbone that it trained as a whole; the record leaves them out.
    """
    options = {"lora_r": 2, "lora_alpha": 3, **options}
    tensors = dict(trained or {})
    for number, (module, (n_out, n_in)) in enumerate(shapes.items()):
        rank = (ranks or {}).get(module, options["lora_r"])
        tensors[f"{module}.deltas.lora_A"] = numbers(rank, n_in, seed=100 * seed + number)
        tensors[f"{module}.deltas.lora_B"] = numbers(n_out, rank, seed=100 * seed + number + 50)
    if record:
        record = replace(record, leaves=tuple(leaf for leaf in record.leaves if leaf.name not in tensors))
    targets = {"delta_type": "lora", "modified_modules": list(shapes), "common_structure": False, "exclude_modules": []}
    patterns = {"rank_pattern": dict(ranks)} if ranks else {}
    return write(folder, {**targets, **options, **patterns}, tensors, record)


def write_peft(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write the same LoRA as `write_lora` with `lora_r=2, lora_alpha=3`, as PEFT does."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "acme/backbone",
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["query", "value"],
        "bias": "none",
        **changes,
    }
    tensors = {}
    for number, (module, (n_out, n_in)) in enumerate(SHAPES.items()):
        tensors[f"base_model.model.{module}.lora_A.weight"] = numbers(2, n_in, seed=100 * seed + number)
        tensors[f"base_model.model.{module}.lora_B.weight"] = numbers(n_out, 2, seed=100 * seed + number + 50)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """The config of a delta."""
    document: dict[str, Any] = json.loads((folder / "delta_config.json").read_text())
    return document


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """The tensors of a delta."""
    return load_file(folder / "delta.safetensors")


def updates_of(folder: Path) -> dict[str, Tensor]:
    """The update of each module of a LoRA, in float64, by the formula of its config."""
    config, tensors = config_of(folder), tensors_in(folder)
    updates = {}
    for name in tensors:
        if not name.endswith(".lora_A"):
            continue
        module = name.removesuffix(".deltas.lora_A")
        rank = config.get("rank_pattern", {}).get(module, config["lora_r"])
        alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        updates[module] = scale * tensors[f"{module}.deltas.lora_B"].double() @ tensors[name].double()
    return updates
