"""Prediction heads saved beside an adapter: they replace the backbone's own head where it has the same tensors.

A head of the backbone's class is saved under its own names, such as `classifier.weight`; one of adapters' own model classes is called
`heads.NAME`, and no other model has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from deltahub.engine.filling import refuse_larger
from deltahub.engine.fingerprint import backbone_values
from deltahub.engine.modules import plain_name
from deltahub.engine.site import is_delta_name
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.files import read_safetensors
from deltahub.formats.torch_file import read_pickle

CONFIG: Final = "head_config.json"
WEIGHTS: Final = "model_head.safetensors"
PICKLE: Final = "pytorch_model_head.bin"


def read_head(folder: Path, backbone: nn.Module, *, allow_pickle: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read the head in a folder.

    Returns:
        The tensors that differ from the backbone's own, by name in the backbone, and the names of those that do not.

    Raises:
        PickleRefusedError: it is a pickle, and `allow_pickle` is false.
        ConfigError: the backbone has no such head.
        CheckpointError: the head is incomplete or damaged.
    """
    saved = _tensors(folder, backbone, allow_pickle=allow_pickle)
    values = dict(backbone_values(backbone))
    first_names = _first_names(backbone)
    replaced: dict[str, Tensor] = {}
    unchanged: list[str] = []
    for key, tensor in saved.items():
        name = first_names.get(key, key)
        if name not in values or values[name].shape != tensor.shape or not tensor.is_floating_point():
            raise _no_place(folder, key, tensor, backbone)
        same = torch.equal(values[name].detach().cpu().to(tensor.dtype), tensor)
        if not same and name != key:
            msg = f"The head's {key} differs from {name}, with which it is one in this {type(backbone).__name__}. {_way_out(folder)}"
            raise ConfigError(msg)
        if not same:
            replaced[name] = tensor
        elif name == key:
            unchanged.append(name)
    return replaced, tuple(unchanged)


def _tensors(folder: Path, backbone: nn.Module, *, allow_pickle: bool) -> Mapping[str, Tensor]:
    """Read the tensors of the head; none if there is no head.

    Raises:
        CheckpointError: the head has no weights, or weights without a config.
    """
    files = [name for name in (CONFIG, WEIGHTS, PICKLE) if (folder / name).is_file()]
    if not files:
        return {}
    if CONFIG not in files or len(files) == 1:
        missing = CONFIG if CONFIG not in files else WEIGHTS
        msg = f"{folder} holds {files[0]} of a prediction head, and {missing} is missing. Fetch the adapter again."
        raise CheckpointError(msg)
    path = folder / files[1]
    refuse_larger(path, backbone)
    return read_safetensors(path) if path.name == WEIGHTS else read_pickle(path, allowed=allow_pickle)


def _first_names(backbone: nn.Module) -> dict[str, str]:
    """Return the first name of each parameter by every name it has, without those of compiled modules."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, parameter in backbone.named_parameters(remove_duplicate=False):
        if not is_delta_name(name):
            names[plain_name(name)] = first.setdefault(id(parameter), plain_name(name))
    return names


def _no_place(folder: Path, key: str, tensor: Tensor, backbone: nn.Module) -> ConfigError:
    msg = (
        f"The folder holds a prediction head with {key} {list(tensor.shape)}, for which this {type(backbone).__name__} has no place. "
        f"{_way_out(folder)}"
    )
    return ConfigError(msg)


def _way_out(folder: Path) -> str:
    return f"To load the adapter without its head, move {CONFIG} and the head's weights out of {folder}."
