"""Deltas with blocks, written without torch, for pages that show them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_record import Fingerprint, Leaf

WIDTH = 6
RANK = 2


def fingerprint(backbone: str) -> Fingerprint:
    """A made-up record of a backbone; another name, another record."""
    return Fingerprint((Leaf("embed.weight", "float32", (10, WIDTH), backbone.encode().hex().ljust(32, "0")[:32]),))


def tensors_of(blocks: int, value: float = 1.0) -> dict[str, Any]:
    """LoRA on query and value of each block, and a head; every value of A is `value`, every one of B is 1."""
    tensors = {"classifier.bias": np.full(4, 0.5, np.float32)}
    for at in range(blocks):
        for part in ("query", "value"):
            tensors[f"encoder.layer.{at}.{part}.deltas.lora_A"] = np.full((RANK, WIDTH), value * (at + 1), np.float32)
            tensors[f"encoder.layer.{at}.{part}.deltas.lora_B"] = np.ones((WIDTH, RANK), np.float32)
    return tensors


def save_delta(
    folder: Path,
    *,
    backbone: str = "bert-tiny",
    method: str = "lora",
    blocks: int = 3,
    value: float = 1.0,
    metrics: Mapping[str, Any] | None = None,
    card: str = "# A card\n\nWhat it is for.\n",
    tensors: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Save a checkpoint.

    Args:
        metrics: its test results.
        options: more of its config.
    """
    known = {
        "test_result": dict(metrics or {}),
        "train_tasks": ["sentiment"],
        "train_datasets": ["sst2"],
        **(metadata or {}),
    }
    document: dict[str, Any] = {
        "format_version": 1,
        "deltahub_version": "0.1.0",
        "delta_type": method,
        "modified_modules": ["query", "value"],
        **({"lora_r": RANK, "lora_alpha": 4} if method == "lora" else {}),
        "backbone_class": "BertModel",
        "backbone_checkpoint_name": backbone,
        "backbone_hash": fingerprint(backbone).hash,
        "metadata": known,
        **options,
    }
    checkpoint.write(folder, document, tensors or tensors_of(blocks, value), fingerprint(backbone), card, save_file)
    return folder
