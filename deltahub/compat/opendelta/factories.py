"""OpenDelta's factories: the class for a delta, chosen by its config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from deltahub import auto
from deltahub.checkpoint.config import DeltaConfig
from deltahub.compat.opendelta.base import MODELS, DeltaBase
from deltahub.compat.opendelta.configs import CONFIGS, document_at
from deltahub.errors import ConfigError


class AutoDeltaConfig(auto.AutoDeltaConfig):
    """Factory for OpenDelta's configs; not to be instantiated."""

    @staticmethod
    def from_dict(config_dict: Mapping[str, Any], **options: Any) -> DeltaConfig:
        """Build a config from JSON types, passing over unknown keys with one warning.

        Raises:
            ConfigError: there is no delta type or an unknown one, a value is invalid, or one of `options` is unknown.
        """
        config_class: Any = CONFIGS.get(str({**config_dict, **options}.get("delta_type")), auto.AutoDeltaConfig)
        config: DeltaConfig = config_class.from_dict(config_dict, **options)
        return config

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
        factory = MODELS.get(config.delta_type, auto.AutoDeltaModel)
        return factory.from_config(config, backbone_model, **options)

    from_finetuned = staticmethod(DeltaBase.from_finetuned)


def interactive(model: nn.Module, port: int = 8888) -> list[str]:
    """Refuse the call: the page chooses modules for one delta.

    Raises:
        ConfigError: always.
    """
    msg = f"Choose the modules of a delta on its page: LoraModel(backbone, interactive_modify={port}); config.modified_modules has them."
    raise ConfigError(msg)
