"""Safe reading of files of other libraries: JSON configs checked by a schema, and tensors a delta can be computed with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from deltahub.checkpoint.checkpoint import LARGEST_CONFIG, tensors_in
from deltahub.checkpoint.safetensors_header import may_be_empty, usable_bytes
from deltahub.errors import CheckpointError, ConfigError, DeltaHubError
from deltahub.files.atomic import read_limited, regular
from deltahub.files.documents import parse, problem

_LONGEST_NAME: Final = 1024
_USABLE: Final = frozenset(
    {
        torch.bool,
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    }
)


def has_key(path: Path, key: str) -> bool:
    """Return whether a file is a JSON object with a key; an unreadable file is not."""
    try:
        document = parse(read_limited(path, LARGEST_CONFIG))
    except (DeltaHubError, ValueError):
        return False
    return isinstance(document, dict) and key in document


def read_config(path: Path, schema: str) -> dict[str, Any]:
    """Read a config and check its values.

    Args:
        schema: the name of a schema for a JSON object.

    Raises:
        CheckpointError: the file is missing, too large or not JSON.
        ConfigError: a value has another type than its library writes, or is out of the usable range.
    """
    try:
        document = parse(read_limited(path, LARGEST_CONFIG))
    except ValueError as error:
        msg = f"{path} is not JSON ({error}). Fetch it again."
        raise CheckpointError(msg) from error
    if wrong := problem(document, schema):
        msg = f"{path} cannot work: {wrong}. Fetch it again, or ask its author."
        raise ConfigError(msg)
    config: dict[str, Any] = document
    return config


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name, after checking its header.

    Raises:
        CheckpointError: the file is not a safetensors file, or holds tensors that no delta has.
    """
    with regular(path) as file:
        return tensors_in(usable_bytes(file, str(path))[0], str(path))


def require_plain(saved: object, path: Path) -> dict[str, Tensor]:
    """Check the content of a pickle and return it as tensors by name.

    Raises:
        CheckpointError: the content is not a mapping of names to dense tensors with values, in dtypes that a delta is computed in.
    """
    if not isinstance(saved, Mapping) or not all(isinstance(tensor, Tensor) for tensor in saved.values()):
        msg = f"{path} contains something other than tensors by name. Save the delta again."
        raise CheckpointError(msg)
    for name, tensor in saved.items():
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            why = f"a name is a text of at most {_LONGEST_NAME} characters"
        elif tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
            why = "it is not a dense tensor with values"
        elif tensor.dtype not in _USABLE:
            why = f"a delta is not computed in {tensor.dtype}"
        elif tensor.numel() == 0 and not may_be_empty(name, tensor.shape):
            why = f"it is empty: its shape is {list(tensor.shape)}"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            why = "it repeats its values instead of holding them"
        else:
            continue
        msg = f"{path} holds {name!r:.200}, which cannot be loaded: {why}. Save the delta again."
        raise CheckpointError(msg)
    return dict(saved)
