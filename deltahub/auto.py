"""AutoDeltaConfig and AutoDeltaModel: the class for a delta, chosen by its config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deltahub.deltas  # noqa: F401  (registers the delta types)
from deltahub.cache.cache import checked, read_cached
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.config import DeltaConfig
from deltahub.errors import ConfigError
from deltahub.handle.base import DeltaBase, delta_classes
from deltahub.handle.loading import load
from deltahub.hub.locating import locate
from deltahub.text.suggestions import suggest


def class_for(delta_type: str) -> type[DeltaBase]:
    """Return the delta model class of a type.

    Raises:
        ConfigError: the type is unknown.
    """
    classes = delta_classes()
    if delta_type not in classes:
        msg = f"delta_type is {delta_type!r}, which this version does not know: {suggest(str(delta_type), classes)}"
        raise ConfigError(msg)
    return classes[delta_type]


def _read_document(folder: Path) -> dict[str, Any]:
    with checked(folder) as (place, config_sha256):
        return checkpoint.read_document(place, config_sha256)


class AutoDeltaConfig:
    """Factory for the config of a delta type; not to be instantiated."""

    def __init__(self) -> None:
        msg = "AutoDeltaConfig is not instantiated; use AutoDeltaConfig.from_dict or .from_finetuned."
        raise TypeError(msg)

    @staticmethod
    def from_dict(config_dict: Mapping[str, Any], **options: Any) -> DeltaConfig:
        """Build a config from JSON types.

        Args:
            config_dict: options, and ``"delta_type"``.
            options: options that replace those of `config_dict`.

        Raises:
            ConfigError: the delta type or an option is unknown, or a value is invalid.
        """
        document = {**config_dict, **options}
        if "delta_type" not in document:
            known = ", ".join(sorted(delta_classes()))
            msg = f"A config needs a delta_type: one of {known}."
            raise ConfigError(msg)
        return class_for(document["delta_type"]).config_class.from_dict(document)

    @staticmethod
    def from_finetuned(finetuned_delta_path: str | os.PathLike[str], **options: Any) -> DeltaConfig:
        """Return the config of a saved delta.

        Args:
            finetuned_delta_path: a folder or a reference.
            options: options that replace the saved ones.
        """
        document = read_cached(lambda: locate(finetuned_delta_path), _read_document)
        return AutoDeltaConfig.from_dict(document, **options)


class AutoDeltaModel:
    """Factory that makes or loads the delta model of a type; not to be instantiated."""

    def __init__(self) -> None:
        msg = "AutoDeltaModel is not instantiated; use AutoDeltaModel.from_config or .from_finetuned."
        raise TypeError(msg)

    @staticmethod
    def from_config(
        config: DeltaConfig | Mapping[str, Any],
        backbone_model: nn.Module,
        *,
        name: str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> DeltaBase:
        """Make a fresh delta.

        Args:
            config: a config, or its JSON form with ``"delta_type"``.
            backbone_model: the model to put it on.
            name: the delta's name on the backbone.
            dtype: dtype of the parameters; by default float32, or the layer's if wider.
            options: options that replace those of the config.
        """
        config = config if isinstance(config, DeltaConfig) else AutoDeltaConfig.from_dict(config)
        if dtype is not None:  # a class of somebody else may not take it
            options["dtype"] = dtype
        return class_for(config.delta_type).from_config(config, backbone_model, name=name, **options)

    @staticmethod
    def from_finetuned(
        finetuned_delta_path: str | os.PathLike[str],
        backbone_model: nn.Module,
        delta_config: DeltaConfig | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        *model_args: Any,
        force_download: bool = False,
        check_hash: bool | str = True,
        local_files_only: bool = False,
        allow_pickle: bool = False,
        name: str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> DeltaBase:
        """Put a saved delta on a backbone, which must be the one that it was trained on.

        Order: find, check every byte, check the config, check the backbone, plan every insertion, then insert and fill.
        A refusal leaves the backbone unchanged. Afterwards the backbone is frozen except for the parameters of
        deltas, and in eval mode unless it carried a delta before, which may be in training.

        Args:
            finetuned_delta_path: a folder, a reference such as ``"DeltaHub/sst2-t5-base@champion"``, or a link.
            backbone_model: the model to put it on.
            delta_config: a config to use instead of the saved one.
            cache_dir: the cache for pulled deltas, if not the default one.
            state_dict: tensors to use instead of the saved ones.
            force_download: fetch it again even if it is in the cache.
            check_hash: True to require exactly the same backbone, ``"structure"`` to accept other values under the same names
                and shapes, False for no check.
            local_files_only: use only files on this machine.
            allow_pickle: whether OpenDelta's `pytorch_model.bin` may be read.
            name: the delta's name on the backbone.
            dtype: dtype of its parameters; by default that of the saved tensors, and float32 for PEFT's.
            options: options that replace those of the config.

        Raises:
            NotFoundError: no source has it.
            IntegrityError: its bytes are not the ones that were saved or published.
            FingerprintMismatch: the backbone is another one.
            CheckpointError: its tensors do not fit.
            ConfigError: a value in its config, or an option given here, is invalid.
        """
        delta: DeltaBase = load(
            class_for,
            finetuned_delta_path,
            backbone_model,
            *model_args,
            config=delta_config,
            tensors=state_dict,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            check_hash=check_hash,
            allow_pickle=allow_pickle,
            name=name,
            dtype=dtype,
            options=options,
        )
        return delta
