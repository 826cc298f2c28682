"""Extracting a delta from a fine-tuned model: a low-rank approximation of the change of each matrix.

    W_tuned - W_base  is approximately  U D        by randomised SVD, see `deltahub.algebra.factors`

Both models are read from their files tensor by tensor, so the memory is that of a few tensors. A change that is not one of a linear
layer's weight, such as of a bias, a norm or an embedding, is kept exactly: the delta holds the tuned tensor, as it holds a tensor that
the base does not have, such as a new head.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.algebra.combine import Report
from deltahub.algebra.factors import Factors, approximated, is_finite
from deltahub.algebra.methods import check_size
from deltahub.algebra.model_files import ModelFiles, names_of
from deltahub.algebra.places import Place
from deltahub.algebra.result import Change, Computed, Written, check_folder, lora_options, lora_tensors, written
from deltahub.checkpoint.backbone_fit import backbone_folder
from deltahub.checkpoint.backbone_record import Fingerprint, Leaf
from deltahub.engine.fingerprint import leaf_of
from deltahub.engine.layers import update_fault
from deltahub.engine.shapes import is_conv1d
from deltahub.engine.skeleton import skeleton
from deltahub.errors import CheckpointError, ConfigError

_MOST_MISSING = 0.5  # share of the tensors that a base without the tuned model's head may lack


def extract(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    force: bool = False,
    report: Report | None = None,
) -> Written:
    """Write a LoRA that turns one model into another, as far as its rank allows.

    Args:
        base: the folder of the model before fine-tuning, or its id in the cache of Hugging Face.
        tuned: the folder or id of the fine-tuned model.
        to: the folder to write, which is new or empty.
        rank: the largest rank of each update.
        energy: the share of each change's squared norm to keep, more than 0 and at most 1, instead of a rank or with one as its limit.
        force: replace a delta in `to`.
        report: called with the number of tensors done, and of all.

    Returns:
        The folder, its digest, and the rank and error of each module. The delta belongs to `base`, and loading checks that.

    Raises:
        ConfigError: neither or an invalid size is given, or a model is quantised.
        CheckpointError: the models have different shapes or do not differ in any matrix, or a file is damaged.
        StorageError: the disk is full or not writable; nothing is left.
    """
    if rank is None and energy is None:
        msg = "extract takes a rank (--rank) or the share of the squared norm to keep (--energy), such as 0.9."
        raise ConfigError(msg)
    check_size(rank, energy)
    folder = Path(to).expanduser()
    check_folder(folder, force=force)
    pair = _Pair.opened(os.fspath(base), os.fspath(tuned))
    computed, base_hash, tuned_hash = pair.compared(rank, energy, report)
    sizes = {key: value for key, value in (("rank", rank), ("energy", energy)) if value is not None}
    lineage = {"operation": "extract", "parameters": {**sizes, "base": base_hash, "tuned": tuned_hash}}
    about = f"Extracted from a fine-tuned model with {' and '.join(f'{key} {value}' for key, value in sizes.items())}."
    return written(folder, computed, [], "", lineage, about)


class _Pair:
    """A base and a tuned model, with the modules of the tuned one.

    Args:
        base: the files of the base.
        tuned: the files of the tuned model.
        model: the tuned model without values.
        base_name: the name of the base as given.
    """

    def __init__(self, base: ModelFiles, tuned: ModelFiles, model: nn.Module, base_name: str) -> None:
        self.base, self.tuned, self.model, self.base_name = base, tuned, model, base_name
        names = names_of(model)
        prefix = str(getattr(model, "base_model_prefix", "") or "")
        self.in_base, self.in_tuned = (files.located(names, prefix) for files in (base, tuned))
        self.names = sorted(names)
        self._check()

    @classmethod
    def opened(cls, base: str, tuned: str) -> _Pair:
        folders = [backbone_folder(place) for place in (base, tuned)]
        files = [ModelFiles.of(folder) for folder in folders]
        name = folders[0].resolve().name if Path(base).expanduser().is_dir() else base
        return cls(files[0], files[1], skeleton(folders[1]), name)

    def _check(self) -> None:
        """Refuse models of which one lacks tensors or has other shapes.

        Raises:
            CheckpointError: they do; the message names the first tensor.
        """
        kind = type(self.model).__name__
        if missing := [name for name in self.names if name not in self.in_tuned]:
            msg = f"{self.tuned.folder} has no {missing[0]}, which a {kind} has. Save it again with save_pretrained."
            raise CheckpointError(msg)
        new = [name for name in self.names if name not in self.in_base]
        if len(new) > _MOST_MISSING * len(self.names):
            msg = (
                f"{self.base.folder} has no {new[0]}, nor {len(new) - 1} others of the {len(self.names)} tensors of the tuned {kind}, so it is "
                "not its base. Pass the model that was fine-tuned."
            )
            raise CheckpointError(msg)
        for name in self.names:
            shapes = [
                files.entries[located[name]].shape
                for files, located in ((self.base, self.in_base), (self.tuned, self.in_tuned))
                if name in located
            ]
            if len(set(shapes)) > 1:
                msg = (
                    f"{name} is {list(shapes[0])} in {self.base.folder} and {list(shapes[1])} in {self.tuned.folder}. If tokens were added, resize "
                    "the base in the same way (resize_token_embeddings), and save it."
                )
                raise CheckpointError(msg)

    def compared(self, rank: int | None, energy: float | None, report: Report | None) -> tuple[Computed, str, str]:
        """Compare all tensors, and return the delta and the fingerprints of both models."""
        updates: dict[Place, Factors] = {}
        trained: dict[str, Tensor] = {}
        changes: list[Change] = []
        leaves: list[list[Leaf]] = [[], []]
        for number, name in enumerate(self.names, 1):
            tensor = self.tuned.read(self.in_tuned[name])
            original = self.base.read(self.in_base[name]) if name in self.in_base else None
            for side, value in enumerate((original, tensor)):
                leaves[side] += [] if value is None else [leaf_of(name, value)]
            if original is None or not _same(original, tensor):
                module = name.removesuffix(".weight")
                if original is not None and module != name and self._is_linear(module) and tensor.is_floating_point():
                    factors, error = self._update(module, original, tensor, rank, energy)
                    updates[Place.at(module)] = factors
                    changes.append(Change(module, factors.rank, error))
                else:
                    trained[name] = _finite(name, tensor)
            if report:
                report(number, len(self.names))
        self._require_updates(updates, trained)
        modules = [change.module for change in changes]
        options: dict[str, Any] = {
            **lora_options(updates),
            "lora_dropout": 0.0,
            "modified_modules": modules,
            "exclude_modules": [],
            "common_structure": False,
            "unfrozen_modules": ["deltas", *trained],
            "backbone_class": type(self.model).__name__,
            "backbone_checkpoint_name": self.base_name,
        }
        computed = Computed(
            options, {**lora_tensors(updates), **trained}, Fingerprint(tuple(leaves[0])), tuple(changes)
        )
        base_hash, tuned_hash = (Fingerprint(tuple(side)).hash for side in leaves)
        return computed, base_hash, tuned_hash

    def _is_linear(self, module: str) -> bool:
        """Return whether a LoRA can hold the change of a layer's weight."""
        layer = self.model.get_submodule(module)
        return (isinstance(layer, nn.Linear) or is_conv1d(layer)) and not update_fault(layer)

    def _update(
        self, module: str, original: Tensor, tensor: Tensor, rank: int | None, energy: float | None
    ) -> tuple[Factors, float]:
        """Return the update of a layer, and its relative error."""
        wide = torch.promote_types(torch.promote_types(original.dtype, tensor.dtype), torch.float32)
        change = _finite(f"{module}.weight", tensor.to(wide) - original.to(wide))
        if is_conv1d(self.model.get_submodule(module)):
            change = change.T.contiguous()
        result = approximated(change, rank, energy)
        return result.factors.to(wide), result.error

    def _require_updates(self, updates: dict[Place, Factors], trained: dict[str, Tensor]) -> None:
        if updates:
            return
        if not trained:
            msg = f"{self.base.folder} and {self.tuned.folder} have the same values, so there is nothing to extract."
            raise CheckpointError(msg)
        msg = (
            f"{self.base.folder} and {self.tuned.folder} differ in no weight of a linear layer, only in {', '.join(list(trained)[:3])}, so there "
            "is no low-rank update to extract."
        )
        raise CheckpointError(msg)


def _same(original: Tensor, tensor: Tensor) -> bool:
    """Return whether two tensors hold the same values, in whichever precision."""
    if original.dtype == tensor.dtype:
        return torch.equal(original, tensor)
    wide = torch.promote_types(original.dtype, tensor.dtype)
    return torch.equal(original.to(wide), tensor.to(wide))


def _finite(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor, unless it holds values that are not finite.

    Raises:
        CheckpointError: it does.
    """
    if not is_finite(tensor):
        msg = f"{name} holds values that are not finite in one of the models. Training diverged; use an earlier state."
        raise CheckpointError(msg)
    return tensor
