"""A registry of made-up but plausible deltas, for pictures and for trying out a hub: made in seconds, without torch."""

from __future__ import annotations

import os
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_record import Fingerprint, Leaf
from deltahub.checkpoint.card import model_card
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.settings.environment import home
from deltahub.stores.local import LocalStore


@dataclass(frozen=True)
class Backbone:
    """A backbone that deltas are for.

    Attributes:
        address: of a module, with ``{}`` for its block.
    """

    name: str
    class_name: str
    blocks: int
    width: int
    address: str
    modules: tuple[str, ...]

    @property
    def fingerprint(self) -> Fingerprint:
        """Create the record of the backbone's tensors."""
        names = [f"{self.address.format(at)}.{module}.weight" for at in range(self.blocks) for module in self.modules]
        return Fingerprint(
            tuple(
                Leaf(name, "float32", (self.width, self.width), f"{hash_of(self.name + name)}")
                for name in sorted(names)
            )
        )


def hash_of(text: str) -> str:
    """32 hex digits derived from a text."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Example:
    """One delta of the showroom; each of its scores becomes a version."""

    name: str
    backbone: Backbone
    task: str
    dataset: str
    metric: str
    scores: tuple[float, ...]
    tags: tuple[str, ...]
    author: str
    method: str = "lora"
    about: str = ""


def examples() -> tuple[Example, ...]:
    """Read all examples of `showroom.toml`."""
    listed = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    backbones = {name: Backbone(**{**it, "modules": tuple(it["modules"])}) for name, it in listed["backbones"].items()}
    return tuple(
        Example(
            **{**it, "backbone": backbones[it["backbone"]], "scores": tuple(it["scores"]), "tags": tuple(it["tags"])}
        )
        for it in listed["deltas"]
    )


EXAMPLES: Final = examples()
RANK: Final = 8
HEAD: Final = "classifier.weight"
SHAPES: Final = {
    "lora": lambda width, rank: {"lora_A": (rank, width), "lora_B": (width, rank)},
    "adapter": lambda width, rank: {"down.weight": (rank, width), "up.weight": (width, rank)},
    "bitfit": lambda width, rank: {"bias": (width,)},  # noqa: ARG005
    "prefix": lambda width, rank: {"keys": (rank, width), "values": (rank, width)},
}


def tensors_of(example: Example, version: int) -> dict[str, np.ndarray]:
    """Create the tensors of one version: noise that is stronger in the middle of the backbone, and with each version."""
    seed = np.random.default_rng(abs(hash_number(f"{example.name}{version}")))
    backbone, modules = example.backbone, example.backbone.modules
    if example.method == "lora" and len(modules) == 3:
        modules = modules[::2]
    tensors: dict[str, np.ndarray] = {}
    for at in range(backbone.blocks):
        for index, module in enumerate(modules):
            place = f"{backbone.address.format(at)}.{module}.deltas."
            depth = np.sin(np.pi * (at + 1) / (backbone.blocks + 1))
            strength = (0.35 + 0.2 * index + 0.55 * depth) * (1 + 0.18 * version)
            for name, shape in SHAPES[example.method](backbone.width, RANK).items():
                tensors[place + name] = (seed.standard_normal(shape) * strength * 0.02).astype(np.float32)
    if not backbone.class_name.endswith("CausalLM"):
        tensors[HEAD] = (seed.standard_normal((2, backbone.width)) * 0.05).astype(np.float32)
    return tensors


def config_of(example: Example, version: int) -> dict[str, Any]:
    """Return the config of one version."""
    backbone, options = example.backbone, {}
    if example.method == "lora":
        options = {"lora_r": RANK, "lora_alpha": 16 * (1 + (version > 1))}
    return {
        "format_version": 1,
        "deltahub_version": "0.1.0",
        "delta_type": example.method,
        "modified_modules": list(backbone.modules),
        **options,
        "backbone_class": backbone.class_name,
        "backbone_checkpoint_name": backbone.name,
        "backbone_hash": backbone.fingerprint.hash,
        "metadata": {
            "description": example.about or f"{example.task.capitalize()} on {example.dataset}.",
            "license": "apache-2.0",
            "train_tasks": [example.task],
            "train_datasets": [example.dataset],
            "test_result": {example.metric: example.scores[version - 1]},
        },
    }


def save(folder: Path, example: Example, version: int) -> Path:
    """Save one version of an example as a checkpoint."""
    tensors, document = tensors_of(example, version), config_of(example, version)
    total = sum(values.size for values in tensors.values())
    head = tensors[HEAD].size if HEAD in tensors else 0
    card = model_card(document, {"delta": total - head, "total": total})
    checkpoint.write(folder, document, tensors, example.backbone.fingerprint, card, save_file)
    return folder


def hash_number(text: str) -> int:
    """Derive a number from a text."""
    return int(hash_of(text)[:12], 16)


def fill(registry: Registry) -> None:
    """Push all examples."""
    with tempfile.TemporaryDirectory() as folder:
        for example, version in versions():
            os.environ["DELTAHUB_AUTHOR"] = example.author
            path = save(Path(folder) / f"{hash_of(example.name)}-{version}", example, version)
            message = ("first run", "more epochs, warm-up", "labels cleaned")[version - 1]
            last = version == len(example.scores)
            aliases = ["champion"] if last and version > 1 else []
            manifest = checkpoint.describe(path)
            publish(
                registry,
                Publication(
                    Reference.parse(example.name), manifest, path, tags=example.tags, aliases=aliases, message=message
                ),
            )


def versions() -> Iterator[tuple[Example, int]]:
    """Yield every version of every example."""
    for example in EXAMPLES:
        for index in range(len(example.scores)):
            yield example, index + 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.environ["DELTAHUB_HOME"] = sys.argv[1]
    fill(Registry(LocalStore(home() / "registry")))
    print(f"{len(EXAMPLES)} deltas are in {home() / 'registry'}; look at them with: deltahub serve --open")
