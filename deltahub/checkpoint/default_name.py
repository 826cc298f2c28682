"""The default name of a delta, made from its task and its backbone, e.g. ``DeltaHub/sst2-t5-base``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deltahub.reference import default_namespace


def backbone_name(config: Mapping[str, Any]) -> str:
    """Return the name of a checkpoint's backbone: the author's, else its folder's, else its class."""
    stated_name = config.get("metadata", {}).get("backbone_model")
    recorded_name = config.get("backbone_checkpoint_name") or config.get("base_model") or config.get("backbone_class")
    return str(stated_name or recorded_name or "")


def default_name(config: Mapping[str, Any], tags: Collection[str] = ()) -> str:
    """Build a name from a checkpoint.

    Args:
        config: its config with metadata.
        tags: tags of the push; ``task=...`` or else the first label can provide the task.

    Returns:
        ``"namespace/task-backbone"``, with the delta type if the task is unknown.
    """
    metadata = config.get("metadata", {})
    if "name" in metadata:
        return str(metadata["name"])
    is_own = "delta_type" in config  # the card of another library's delta has tags for its hub
    all_tags = [*tags, *(metadata.get("tags", []) if is_own else ())]
    pairs = dict(tag.split("=", 1) for tag in all_tags if "=" in tag)
    labels = [tag for tag in all_tags if "=" not in tag]
    tasks = [*metadata.get("train_tasks", []), *metadata.get("train_datasets", [])] if is_own else []
    candidates = [*tasks[:1], *(pairs[key] for key in ("task", "dataset") if key in pairs), *labels]
    task = candidates[0] if candidates else method_of(config)
    backbone = backbone_name(config).rpartition("/")[2] or "backbone"
    return f"{default_namespace()}/{plain_name(f'{task}-{backbone}')}"


def method_of(config: Mapping[str, Any]) -> str:
    """Return the method of a delta in any format: ``"lora"``."""
    return str(config.get("delta_type") or config.get("peft_type") or config.get("method") or "delta").lower()


def folder_name(folder: Path, namespace: str) -> str:
    """Name a delta after its folder: ``"namespace/folder"``."""
    return f"{namespace}/{plain_name(folder.resolve().name)}"


def plain_name(text: str) -> str:
    """Reduce a text to the characters allowed in a name."""
    name = re.sub(r"[^A-Za-z0-9._]+", "-", text)
    name = re.sub(r"\.{2,}", ".", name)
    name = name[:96].strip("-._") or "delta"
    return re.sub(r"[.-]*\.(git|ipynb|json|lock)$", r"-\1", name, flags=re.IGNORECASE)  # reserved endings
