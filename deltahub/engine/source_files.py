"""The files that a backbone was loaded from, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import safetensors
from torch import Tensor, nn

from deltahub.checkpoint.backbone_fit import backbone_folder
from deltahub.errors import CheckpointError


def source_of(backbone: nn.Module) -> Callable[[str], Tensor | None]:
    """Return a function that reads a floating-point tensor by its name in a backbone from the files that transformers loaded.

    It returns None for a tensor that the files do not have under that name, and if they are not on this machine.
    """
    name = getattr(getattr(backbone, "config", None), "_name_or_path", None) or getattr(backbone, "name_or_path", None)
    files: dict[str, Path] = {}
    if isinstance(name, str) and name:
        with suppress(CheckpointError, OSError, safetensors.SafetensorError):
            files = _files(backbone_folder(name))
    prefix = f"{getattr(backbone, 'base_model_prefix', '')}."

    def read(name: str) -> Tensor | None:
        key = next((key for key in (name, f"{prefix}{name}", name.removeprefix(prefix)) if key in files), None)
        if key is None:
            return None
        with safetensors.safe_open(files[key], framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor if tensor.is_floating_point() and tensor.dtype.itemsize > 1 else None

    return read


def _files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor in a folder."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            paths |= dict.fromkeys(file.keys(), path)
    return paths
