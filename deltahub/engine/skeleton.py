"""A backbone's modules built from the config in its folder alone: shapes without values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltahub.engine.modules import own_modules
from deltahub.engine.structure.experts import named_experts
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap
from deltahub.errors import CheckpointError


def skeleton(folder: Path, class_name: str = "") -> nn.Module:
    """Build the model that a folder's `config.json` describes, on the meta device, without reading weights.

    Args:
        class_name: the class to build if it is a transformers class for this config; else the class that the config names.

    Raises:
        CheckpointError: the folder has no config that transformers understands.
    """
    import transformers

    if not (folder / "config.json").is_file():
        msg = f"{folder} holds neither a delta nor a backbone: expected delta_config.json or config.json in it."
        raise CheckpointError(msg)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        msg = f"{folder / 'config.json'} describes no backbone that transformers knows: {error}"
        raise CheckpointError(msg) from error
    requested_class = getattr(transformers, class_name, None)
    if getattr(requested_class, "config_class", None) is not type(config):
        requested_class = None
    classes = (requested_class, *(getattr(transformers, name, None) for name in config.architectures or ()))
    model_class = next((cls for cls in classes if cls is not None), None)
    with torch.device("meta"):
        model: nn.Module = (model_class or transformers.AutoModel.from_config)(config)
    return model


def stand_in(class_name: str) -> nn.Module | None:
    """Build a model of a transformers class with its default config, on the meta device, with tied weights where possible.

    Returns:
        None if transformers has no such class, or the class has no default config.
    """
    import transformers

    model_class: Any = getattr(transformers, class_name, None)
    config_class: Any = getattr(model_class, "config_class", None)
    if config_class is None:
        return None
    try:
        config = config_class()
        for part in (config, *(value for value in vars(config).values() if hasattr(value, "tie_word_embeddings"))):
            part.tie_word_embeddings = True
        with torch.device("meta"):
            model: nn.Module = model_class(config)
    except Exception:  # noqa: BLE001  # a class whose config has no defaults can raise anything
        return None
    return model


def common_names(backbone: nn.Module) -> dict[str, tuple[list[str], int]]:
    """Return the common names of a backbone's modules, and of the parts of its mixtures of experts, with ``*`` for block numbers.

    Returns:
        Common name to the real names that have it, and the number of these modules or parameters.
    """
    structure = StructureMap.of(backbone)
    pairs = [(structure.common_name(name), name) for name, _ in own_modules(backbone)]
    pairs = [(common, name) for common, name in pairs if common != name and common.endswith(MARK)]
    pairs += [(part.common, f"{part.module}.{part.parameter}".rstrip(".")) for part in named_experts(structure)]
    groups: dict[str, tuple[list[str], int]] = {}
    for common, name in pairs:
        key = re.sub(r"\.\d+(?=\.)", ".*", common.replace(MARK, ""))
        real, count = groups.get(key, ([], 0))
        pattern = re.sub(r"\.\d+(?=\.)", ".*", name)
        groups[key] = ([*real, *([] if pattern in real else [pattern])], count + 1)
    return groups
