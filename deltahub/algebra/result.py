"""The result of an operation on deltas: a checkpoint folder whose config says how it was made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from deltahub.algebra.factors import Factors
from deltahub.algebra.operand import Operand
from deltahub.algebra.places import DOWN, UP, Place
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.card import model_card
from deltahub.checkpoint.description import fixed_values
from deltahub.checkpoint.manifest import DELTA_PART
from deltahub.errors import CheckpointError
from deltahub.reference import Digest
from deltahub.version import VERSION

COMBINED: Final = "combined"
RESIZED: Final = "resized"
SCALED: Final = "scaled"
_FIRST_RELEASES: Final = "0.1."  # left out the scale of embeddings; loading refuses their LoRA there


@dataclass(frozen=True)
class Change:
    """The update of one module in a result.

    Attributes:
        module: the name of the module, with the part for a fused layer.
        rank: the rank of the result, the largest one of a stack of experts.
        error: the relative error of the update against the exact result, in the Frobenius norm; the largest one of a stack.
    """

    module: str
    rank: int
    error: float


@dataclass(frozen=True)
class Computed:
    """A delta before it is written.

    Attributes:
        options: the config of the method and the addresses of its modules.
        tensors: its tensors by name.
        backbone: the record of the backbone by the operands, with the tensors that the delta replaces; None if unknown.
        changes: a report on each module of a LoRA.
    """

    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    backbone: Fingerprint | None
    changes: tuple[Change, ...] = ()

    def record(self, version: int | None = None) -> Fingerprint | None:
        """Return the record of the backbone, without the tensors that the delta replaces."""
        if self.backbone is None:
            return None
        leaves = tuple(leaf for leaf in self.backbone.leaves if leaf.name not in self.tensors)
        return replace(self.backbone, leaves=leaves, version=version or self.backbone.version)


@dataclass(frozen=True)
class Written:
    """A delta that an operation wrote.

    Attributes:
        folder: its folder, a checkpoint like any other.
        digest: its identity.
        size: the size of its files in bytes.
        changes: a report on each module of a LoRA; empty for other methods.
        trained: the names of the tensors that it trained as a whole.
    """

    folder: Path
    digest: Digest
    size: int
    changes: tuple[Change, ...]
    trained: tuple[str, ...] = field(default=())


def check_folder(to: Path, *, force: bool) -> None:
    """Refuse to replace a delta unasked, or to write beside other files.

    Raises:
        CheckpointError: the folder is a file, or holds something.
    """
    if to.is_file():
        msg = f"{to} is a file; expected a folder to write the delta into. Choose another path."
        raise CheckpointError(msg)
    if not to.is_dir() or not any(to.iterdir()):
        return
    if not checkpoint.is_checkpoint(to):
        msg = f"{to} contains something other than a delta. Choose a new folder."
        raise CheckpointError(msg)
    if not force:
        msg = f"{to} holds a delta. Choose a new folder, or replace it with force=True (--force)."
        raise CheckpointError(msg)


def lora_options(updates: Mapping[Place, Factors]) -> dict[str, Any]:
    """Return the options of a LoRA whose updates have a scale of 1.

    Args:
        updates: by place; those on parts of one fused layer, and on the experts of a stack, have the same rank.
    """
    ranks = {place.address: update.rank for place, update in updates.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: value for module, value in sorted(ranks.items()) if value != rank}
    patterns = {"rank_pattern": others, "alpha_pattern": {module: float(value) for module, value in others.items()}}
    return {
        "delta_type": "lora",
        "lora_r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "use_dora": False,
        **(patterns if others else {}),
    }


def lora_tensors(updates: Mapping[Place, Factors]) -> dict[str, Tensor]:
    """Return the tensors of a LoRA by name; the factors of the experts of a stack are stacked."""
    by_stem: dict[str, list[tuple[int, Factors]]] = {}
    for place, update in updates.items():
        by_stem.setdefault(place.stem, []).append((place.expert, update))
    tensors: dict[str, Tensor] = {}
    for end, side in ((DOWN, "down"), (UP, "up")):
        for stem, entries in by_stem.items():
            sides = [getattr(update, side) for _, update in sorted(entries, key=lambda entry: entry[0])]
            tensors[stem + end] = sides[0] if entries[0][0] < 0 else torch.stack(sides)
    return tensors


def same_ranks(updates: Mapping[Place, Factors]) -> dict[Place, Factors]:
    """Return updates of which those at one address have the same rank, as the config has one for each address."""
    widest: dict[str, int] = {}
    for place, update in updates.items():
        widest[place.address] = max(update.rank, widest.get(place.address, 0))
    return {place: update.widened(widest[place.address]) for place, update in updates.items()}


def written(
    to: Path, computed: Computed, operands: Sequence[Operand], relation: str, lineage: Mapping[str, Any], about: str
) -> Written:
    """Write a result as a checkpoint.

    Args:
        to: the folder, checked before.
        operands: the deltas that it was made from.
        relation: its relation to them.
        lineage: the operation and its parameters, from which it can be computed again.
        about: a description for the card.

    Raises:
        ConfigError: an option of the result is out of range.
        StorageError: the disk is full or not writable; nothing is left.
    """
    fingerprint = computed.record()
    releases = [str(one.document.get("deltahub_version", "")) for one in operands]
    document = {
        "format_version": 1,
        "deltahub_version": min((r for r in releases if r.startswith(_FIRST_RELEASES)), default=VERSION),
        "torch_version": version("torch"),
        **computed.options,
        "backbone_hash": fingerprint.hash if fingerprint else None,
        "parents": [{"relation": relation, **one.parent} for one in operands],
        "lineage": dict(lineage),
        "metadata": {**_metadata(operands), "description": about},
    }
    counts = {"delta": 0, "total": 0}
    for name, tensor in computed.tensors.items():
        counts["delta"] += tensor.numel() if DELTA_PART in f".{name}" else 0
        counts["total"] += tensor.numel()
    counts["fixed"] = fixed_values(document, {name: tensor.numel() for name, tensor in computed.tensors.items()})
    checkpoint.write(
        to, document, computed.tensors, fingerprint, model_card(document, counts, fingerprint), save_tensors
    )
    manifest = checkpoint.describe(to)
    trained = tuple(name for name in computed.tensors if DELTA_PART not in f".{name}")
    return Written(to, manifest.digest, manifest.size, computed.changes, trained)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as a safetensors file; the same tensors give the same bytes."""
    save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, path, metadata={"format": "pt"})


def _metadata(operands: Sequence[Operand]) -> dict[str, Any]:
    """Return the facts that all operands state alike, and the tasks and data of all."""
    every = [one.document.get("metadata", {}) for one in operands]
    same = {
        key: every[0][key]
        for key in ("license", "backbone_model", "backbone_model_path_public")
        if every and key in every[0] and all(one.get(key) == every[0][key] for one in every)
    }
    lists = {
        key: list(dict.fromkeys(value for one in every for value in one.get(key, ())))
        for key in ("train_tasks", "train_datasets")
    }
    return {**same, **{key: values for key, values in lists.items() if values}}


def total_error(changes: Sequence[Change]) -> float:
    """Return the largest relative error of a result; 0 if it has no modules."""
    return max((change.error for change in changes), default=0.0) if changes else 0.0


def described_weights(weights: Sequence[float]) -> str:
    """Format weights for a description."""
    return ", ".join(f"{weight:.4g}" if math.isfinite(weight) else str(weight) for weight in weights)
