"""OpenDelta's delta models and their factories."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from deltahub import auto, deltas
from deltahub.checkpoint.config import DeltaConfig
from deltahub.compat.opendelta.base import MODELS, DeltaBase
from deltahub.compat.opendelta.configs import (
    AdapterConfig,
    BitFitConfig,
    CompacterConfig,
    LoraConfig,
    LowRankAdapterConfig,
    ParallelAdapterConfig,
    PrefixConfig,
    SoftPromptConfig,
    document_at,
)
from deltahub.errors import ConfigError


class AdapterModel(deltas.AdapterModel, DeltaBase):
    """Adapters with OpenDelta's methods."""

    config_class = AdapterConfig


class BitFitModel(deltas.BitFitModel, DeltaBase):
    """BitFit with OpenDelta's methods."""

    config_class = BitFitConfig


class CompacterModel(deltas.CompacterModel, DeltaBase):
    """Compacters with OpenDelta's methods."""

    config_class = CompacterConfig


class LoraModel(deltas.LoraModel, DeltaBase):
    """LoRA with OpenDelta's methods."""

    config_class = LoraConfig


class LowRankAdapterModel(deltas.LowRankAdapterModel, DeltaBase):
    """Low-rank adapters with OpenDelta's methods."""

    config_class = LowRankAdapterConfig


class ParallelAdapterModel(deltas.ParallelAdapterModel, DeltaBase):
    """Parallel adapters with OpenDelta's methods."""

    config_class = ParallelAdapterConfig


class PrefixModel(deltas.PrefixModel, DeltaBase):
    """Prefix tuning with OpenDelta's methods."""

    config_class = PrefixConfig


class SoftPromptModel(deltas.SoftPromptModel, DeltaBase):
    """Prompt tuning with OpenDelta's methods."""

    config_class = SoftPromptConfig


class AutoDeltaConfig(auto.AutoDeltaConfig):
    """Factory for OpenDelta's configs; not to be instantiated."""

    @staticmethod
    def from_dict(config_dict: Mapping[str, Any], **options: Any) -> DeltaConfig:
        """Build a config from JSON types, passing over unknown keys with one warning.

        Raises:
            ConfigError: there is no delta type or an unknown one, a value is invalid, or one of `options` is unknown.
        """
        model = MODELS.get(str({**config_dict, **options}.get("delta_type")))
        if model is None:  # a type of DeltaHub alone, or an unknown one
            return auto.AutoDeltaConfig.from_dict(config_dict, **options)
        config_class: type[DeltaConfig] = model.config_class
        return config_class.from_dict(config_dict, **options)

    @staticmethod
    def from_finetuned(finetuned_delta_path: str | os.PathLike[str], **options: Any) -> DeltaConfig:
        """Return a saved config: see `BaseDeltaConfig.from_finetuned`."""
        return AutoDeltaConfig.from_dict(document_at(finetuned_delta_path), **options)


class AutoDeltaModel(auto.AutoDeltaModel):
    """Factory that makes or loads the delta model of a type; not to be instantiated."""

    @staticmethod
    def from_config(config: DeltaConfig | Mapping[str, Any], backbone_model: nn.Module, **options: Any) -> Any:
        """Make a fresh delta; options as for DeltaHub's factory."""
        config = config if isinstance(config, DeltaConfig) else AutoDeltaConfig.from_dict(config)
        if config.delta_type not in MODELS:
            return auto.AutoDeltaModel.from_config(config, backbone_model, **options)
        return MODELS[config.delta_type].from_config(config, backbone_model, **options)

    from_finetuned = staticmethod(DeltaBase.from_finetuned)


def interactive(model: nn.Module, port: int = 8888) -> list[str]:
    """Refuse the call: the page chooses modules for one delta.

    Raises:
        ConfigError: always.
    """
    msg = f"Choose the modules of a delta on its page: LoraModel(backbone, interactive_modify={port}); config.modified_modules has them."
    raise ConfigError(msg)
