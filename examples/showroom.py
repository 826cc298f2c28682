"""A registry of made-up but plausible deltas, for pictures and for trying out a hub: made in seconds, without torch."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file

from deltahub import checkpoint
from deltahub.backbone import Fingerprint, Leaf
from deltahub.card import model_card
from deltahub.places import home
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
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
        """A record of its tensors."""
        names = [f"{self.address.format(at)}.{module}.weight" for at in range(self.blocks) for module in self.modules]
        return Fingerprint(
            tuple(
                Leaf(name, "float32", (self.width, self.width), f"{hash_of(self.name + name)}")
                for name in sorted(names)
            )
        )


def hash_of(text: str) -> str:
    """32 hex digits that follow from a text."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:32]


BERT: Final = Backbone(
    "bert-base-uncased",
    "BertForSequenceClassification",
    12,
    64,
    "bert.encoder.layer.{}.attention.self",
    ("query", "key", "value"),
)
T5: Final = Backbone(
    "t5-base", "T5ForConditionalGeneration", 12, 64, "decoder.block.{}.layer.0.SelfAttention", ("q", "v")
)
LLAMA: Final = Backbone(
    "HuggingFaceTB/SmolLM2-135M",
    "LlamaForCausalLM",
    30,
    48,
    "model.layers.{}.self_attn",
    ("q_proj", "k_proj", "v_proj", "o_proj"),
)
MINILM: Final = Backbone(
    "sentence-transformers/all-MiniLM-L6-v2", "BertModel", 6, 48, "encoder.layer.{}.attention.self", ("query", "value")
)


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


EXAMPLES: Final = (
    Example(
        "acme/sst2-bert",
        BERT,
        "sentiment",
        "sst2",
        "accuracy",
        (0.9014, 0.9197, 0.9255),
        ("task=sentiment", "lang=en", "sst2"),
        "ada",
        about="Tells whether a sentence of a movie review is positive. Short sentences; irony is a weak spot.",
    ),
    Example("acme/ner-conll", BERT, "ner", "conll2003", "f1", (0.8971, 0.9113), ("task=ner", "lang=en"), "grace"),
    Example(
        "acme/tickets-routing",
        BERT,
        "classification",
        "tickets",
        "accuracy",
        (0.812, 0.846),
        ("task=routing", "lang=en"),
        "ada",
        "bitfit",
    ),
    Example(
        "acme/toxicity", BERT, "classification", "jigsaw", "auroc", (0.961,), ("task=moderation", "lang=en"), "alan"
    ),
    Example(
        "DeltaHub/sst2-t5-base",
        T5,
        "sentiment",
        "sst2",
        "accuracy",
        (0.9312, 0.9421),
        ("task=sentiment", "lang=en", "sst2"),
        "barbara",
    ),
    Example(
        "DeltaHub/summarise-cnn",
        T5,
        "summarisation",
        "cnn_dailymail",
        "rougeL",
        (38.2, 39.7, 40.1),
        ("task=summarisation", "lang=en"),
        "barbara",
    ),
    Example(
        "DeltaHub/boolq-t5",
        T5,
        "question-answering",
        "boolq",
        "accuracy",
        (0.811,),
        ("task=qa", "lang=en"),
        "grace",
        "prefix",
    ),
    Example(
        "research/stories-smollm2",
        LLAMA,
        "language-modelling",
        "tinystories",
        "perplexity",
        (6.31, 5.87),
        ("task=lm", "lang=en", "experiment"),
        "alan",
    ),
    Example(
        "research/code-comments",
        LLAMA,
        "language-modelling",
        "the-stack-python",
        "perplexity",
        (4.12,),
        ("task=lm", "lang=en"),
        "alan",
    ),
    Example(
        "research/german-chat",
        LLAMA,
        "chat",
        "oasst-de",
        "win_rate",
        (0.571, 0.604),
        ("task=chat", "lang=de", "experiment"),
        "grace",
    ),
    Example(
        "search/passages",
        MINILM,
        "retrieval",
        "msmarco",
        "mrr10",
        (0.3312, 0.3398),
        ("task=retrieval", "lang=en"),
        "edsger",
    ),
    Example(
        "search/reviews",
        MINILM,
        "sentiment",
        "movie-reviews",
        "accuracy",
        (0.847,),
        ("task=sentiment", "lang=en"),
        "edsger",
        "adapter",
    ),
)


def save(folder: Path, example: Example, version: int) -> Path:
    """Save one version of an example as a checkpoint."""
    seed = np.random.default_rng(abs(hash_number(f"{example.name}{version}")))
    backbone, rank = example.backbone, 8
    tensors: dict[str, Any] = {}
    for at in range(backbone.blocks):
        for index, module in enumerate(
            backbone.modules
            if example.method != "lora"
            else backbone.modules[:: 2 if len(backbone.modules) == 3 else 1]
        ):
            place = f"{backbone.address.format(at)}.{module}.deltas."
            strength = (0.35 + 0.2 * index + 0.55 * np.sin(np.pi * (at + 1) / (backbone.blocks + 1))) * (
                1 + 0.18 * version
            )
            for name, shape in SHAPES[example.method](backbone.width, rank).items():
                tensors[place + name] = (seed.standard_normal(shape) * strength * 0.02).astype(np.float32)
    if not backbone.class_name.endswith("CausalLM"):
        tensors["classifier.weight"] = (seed.standard_normal((2, backbone.width)) * 0.05).astype(np.float32)
    options: Mapping[str, Any] = (
        {"lora_r": rank, "lora_alpha": 16 * (1 + (version > 1))} if example.method == "lora" else {}
    )
    document: dict[str, Any] = {
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
    total = sum(values.size for values in tensors.values())
    head = tensors["classifier.weight"].size if "classifier.weight" in tensors else 0
    card = model_card(document, {"delta": total - head, "total": total})
    checkpoint.write(folder, document, tensors, backbone.fingerprint, card, save_file)
    return folder


SHAPES: Final = {
    "lora": lambda width, rank: {"lora_A": (rank, width), "lora_B": (width, rank)},
    "adapter": lambda width, rank: {"down.weight": (rank, width), "up.weight": (width, rank)},
    "bitfit": lambda width, rank: {"bias": (width,)},  # noqa: ARG005
    "prefix": lambda width, rank: {"keys": (rank, width), "values": (rank, width)},
}


def hash_number(text: str) -> int:
    """A number that follows from a text."""
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
            registry.publish(
                Reference.parse(example.name), manifest, path, tags=example.tags, aliases=aliases, message=message
            )


def versions() -> Iterator[tuple[Example, int]]:
    """Every version of every example."""
    for example in EXAMPLES:
        for index in range(len(example.scores)):
            yield example, index + 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.environ["DELTAHUB_HOME"] = sys.argv[1]
    fill(Registry(LocalStore(home() / "registry")))
    print(f"{len(EXAMPLES)} deltas are in {home() / 'registry'}; look at them with: deltahub serve --open")
