"""AutoDeltaConfig and AutoDeltaModel: the class for a delta, chosen by its config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deltahub.deltas  # noqa: F401  (registers the delta types)
from deltahub.cache.cache import checked, read_cached
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.config import DeltaConfig
from deltahub.errors import ConfigError
from deltahub.handle.base import DeltaBase, class_for, delta_classes
from deltahub.hub.locating import locate


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
            types = ", ".join(sorted(delta_classes()))
            msg = f"A config needs a delta_type: one of {types}."
            raise ConfigError(msg)
        package = document.get("delta_package")
        cls: type[DeltaBase] = class_for(document["delta_type"], None if package is None else str(package))
        return cls.config_class.from_dict(document)

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
        cls: type[DeltaBase] = class_for(config.delta_type)
        return cls.from_config(config, backbone_model, name=name, **options)

    from_finetuned = staticmethod(DeltaBase.from_finetuned)  # which loads a delta of any type
