"""Small checkpoints, written without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from deltahub.cache.cache import Cache
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_record import Fingerprint, Leaf
from deltahub.checkpoint.manifest import FileEntry
from deltahub.files.atomic import copy_hashed

LEAVES = (
    Leaf("embed.weight", "float32", (10, 4), "0" * 32),
    Leaf("layer.query.weight", "float32", (4, 4), "1" * 32),
    Leaf("layer.value.weight", "float32", (4, 4), "2" * 32),
)
BACKBONE = Fingerprint(LEAVES)
DOCUMENT: dict[str, Any] = {
    "format_version": 1,
    "deltahub_version": "0.1.0",
    "delta_type": "lora",
    "modified_modules": ["query"],
    "lora_r": 1,
    "backbone_class": "BertModel",
    "backbone_checkpoint_name": "bert-tiny",
    "backbone_hash": BACKBONE.hash,
}


def save_checkpoint(
    folder: Path,
    *,
    value: float = 0.5,
    metadata: Mapping[str, Any] | None = None,
    card: str = "# A delta\n",
    **options: Any,
) -> Path:
    """Save a checkpoint of a few bytes.

    Args:
        value: of every weight of the delta.
        options: replace those of the config.
    """
    tensors = {
        "layer.query.deltas.lora_A": np.full((1, 4), value, np.float32),
        "layer.query.deltas.lora_B": np.full((4, 1), value, np.float32),
        "classifier.bias": np.zeros(2, np.float32),
    }
    document = {**DOCUMENT, **options} | ({"metadata": dict(metadata)} if metadata else {})
    checkpoint.write(folder, document, tensors, BACKBONE, card, save_file)
    return folder


class Fetched:
    """A checkpoint folder as something to fetch into a cache, and a count of the files that were."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fetched = folder, 0
        self.manifest = checkpoint.describe(folder)
        self.digest = self.manifest.digest

    def fetch(self, entry: FileEntry, into: Path) -> None:
        self.fetched += 1
        copy_hashed(self.folder / entry.path, into)

    def into(self, cache: Cache, origin: str = "local:acme/ner@v1", **options: bool) -> Path:
        return cache.get(self.digest, self.manifest, self.fetch, origin, **options)


def content_of(folder: Path) -> dict[str, bytes]:
    """The files in a folder and all its folders, by relative path, but for the space that a registry or a cache sets aside."""
    files = ((str(path.relative_to(folder)), path) for path in sorted(folder.rglob("*")) if path.is_file())
    return {name: path.read_bytes() for name, path in files if not name.startswith("reserve/")}
