"""A backbone's modules from its folder's config alone: shapes without values."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from deltahub.engine.modules import own_modules
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap
from deltahub.errors import CheckpointError


def skeleton(folder: Path) -> nn.Module:
    """Build the model that a folder's `config.json` describes, on the meta device; no weights are read.

    Raises:
        CheckpointError: there is no config that transformers understands.
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
    found = (getattr(transformers, name, None) for name in config.architectures or ())
    model_class = next((cls for cls in found if cls is not None), None)
    with torch.device("meta"):
        model: nn.Module = (model_class or transformers.AutoModel.from_config)(config)
    return model


def common_names(backbone: nn.Module) -> dict[str, tuple[list[str], int]]:
    """The common names of a backbone's modules, block numbers written as ``*``.

    Returns:
        Common name to the real names that have it, and how many modules they are.
    """
    structure = StructureMap.of(backbone)
    found: dict[str, tuple[list[str], int]] = {}
    for name, _ in own_modules(backbone):
        common = structure.common_name(name)
        if common == name or not common.endswith(MARK):
            continue
        key = re.sub(r"\.\d+(?=\.)", ".*", common.replace(MARK, ""))
        real, count = found.get(key, ([], 0))
        pattern = re.sub(r"\.\d+(?=\.)", ".*", name)
        found[key] = ([*real, *([] if pattern in real else [pattern])], count + 1)
    return found
