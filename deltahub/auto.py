"""AutoDeltaConfig and AutoDeltaModel: the class for a delta, chosen by its config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import deltahub.deltas  # noqa: F401  (registers the delta types)
from deltahub.cache.cache import checked, read_cached
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.config import DeltaConfig
from deltahub.errors import ConfigError
from deltahub.handle.base import DeltaBase, delta_classes
from deltahub.handle.saving import SaveLoadMixin
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


class AutoDeltaModel(SaveLoadMixin):
    """Factory that makes or loads the delta model of a type; not to be instantiated."""

    def __init__(self) -> None:
        msg = "AutoDeltaModel is not instantiated; use AutoDeltaModel.from_config or .from_finetuned."
        raise TypeError(msg)

    @staticmethod
    def from_config(config: DeltaConfig | Mapping[str, Any], backbone_model: nn.Module, **options: Any) -> DeltaBase:
        """Make a fresh delta.

        Args:
            config: a config, or its JSON form with ``"delta_type"``.
            backbone_model: the model to put it on.
            options: `name`, `dtype`, and options that replace those of the config.
        """
        name = options.pop("name", None)
        config = config if isinstance(config, DeltaConfig) else AutoDeltaConfig.from_dict(config)
        return class_for(config.delta_type).from_config(config, backbone_model, name=name, **options)

    @classmethod
    def _class_for(cls, delta_type: str) -> type[DeltaBase]:
        return class_for(delta_type)
