"""OpenDelta's configs: unknown keys are passed over with one warning, and a config has a file of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Self

from deltahub import auto, deltas
from deltahub.checkpoint.config import CHECKPOINT_KEYS, DeltaConfig
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files.atomic import read_limited, storage_errors
from deltahub.files.documents import parse
from deltahub.log import LOGGER

CONFIG: Final = "config.json"
_LARGEST: Final = 1 << 20


class BaseDeltaConfig(DeltaConfig):
    """The base class of OpenDelta's configs."""

    def __post_init__(self) -> None:
        """Use common names where no modules are given, whatever `common_structure` is, as OpenDelta does."""
        if self.modified_modules is None and self.exclude_modules is None:
            object.__setattr__(self, "common_structure", None)
        super().__post_init__()

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], **overrides: Any) -> Self:
        """Read a config from JSON types, passing over unknown keys with one warning.

        Args:
            overrides: options that replace those of `document`; an unknown one is refused.

        Raises:
            ConfigError: a value or an override is invalid.
        """
        options = {field.name for field in fields(cls)} | CHECKPOINT_KEYS
        if unknown := sorted(str(key) for key in document if key not in options):
            LOGGER.warning("%s passes over keys that it does not know: %s", cls.__name__, ", ".join(unknown))
        return super().from_dict({key: value for key, value in document.items() if key in options}, **overrides)

    @classmethod
    def from_finetuned(cls, finetuned_delta_path: str | os.PathLike[str], **options: Any) -> Self:
        """Read the config of a saved delta, or one that `save_finetuned` wrote.

        Args:
            finetuned_delta_path: a folder, a JSON file, or a reference of a delta.
            options: options that replace the saved ones.

        Raises:
            CheckpointError: the file is not JSON.
            ConfigError: the config is for another type, or a value is invalid.
            NotFoundError: no source has the delta.
        """
        return cls.from_dict(document_at(finetuned_delta_path), **options)

    def save_finetuned(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False) -> None:
        """Write the config as `config.json` into a folder, which is made if it does not exist.

        Raises:
            ConfigError: `push_to_hub` is true: a config is pushed only with its delta.
            StorageError: the folder cannot be written.
        """
        if push_to_hub:
            msg = "A config is pushed with its delta: save the delta with save_finetuned, then push its folder with deltahub.push."
            raise ConfigError(msg)
        folder = Path(save_directory).expanduser()
        with storage_errors("Saving the config", folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / CONFIG)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the delta type and the options that differ from their defaults, as JSON types."""
        defaults = {**type(self)().to_dict(), "delta_type": None}
        return {key: value for key, value in self.to_dict().items() if value != defaults[key]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the config as JSON: only what differs from the defaults, or every option."""
        return json.dumps(self.to_diff_dict() if use_diff else self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write `to_json_string` to a file.

        Raises:
            StorageError: the file cannot be written.
        """
        path = Path(json_file_path)
        with storage_errors("Saving the config", path.parent):
            path.write_text(self.to_json_string(use_diff), "utf-8")


def document_at(place: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON of a config: a file, `config.json` of a folder, or the config of a saved delta.

    Raises:
        CheckpointError: the file is not JSON, or not a config of a delta.
        NotFoundError: no source has the delta.
    """
    path = Path(place).expanduser()
    path = path / CONFIG if (path / CONFIG).is_file() and not (path / "delta_config.json").is_file() else path
    if not path.is_file():
        return auto.AutoDeltaConfig.from_finetuned(place).to_dict()
    try:
        document = parse(read_limited(path, _LARGEST))
    except ValueError as error:
        msg = f"{path} is not JSON ({error}). Save the config again."
        raise CheckpointError(msg) from error
    if not isinstance(document, dict) or "delta_type" not in document:
        msg = f"{path} is not the config of a delta: it has no delta_type. Save the config with save_finetuned."
        raise CheckpointError(msg)
    return document


METHODS: Final = {
    "adapter": "Adapter",
    "bitfit": "BitFit",
    "compacter": "Compacter",
    "lora": "Lora",
    "low_rank_adapter": "LowRankAdapter",
    "parallel_adapter": "ParallelAdapter",
    "prefix": "Prefix",
    "soft_prompt": "SoftPrompt",
}


def with_methods(base: type, name: str, module: str, **attributes: Any) -> type[Any]:
    """Return DeltaHub's class of a name with the methods of an OpenDelta base class, as a class of a module."""
    original = getattr(deltas, name)
    return type(name, (original, base), {"__module__": module, "__doc__": original.__doc__, **attributes})


CONFIGS: Final = {method: with_methods(BaseDeltaConfig, f"{name}Config", __name__) for method, name in METHODS.items()}
globals().update({config_class.__name__: config_class for config_class in CONFIGS.values()})
