"""Reader for tensors in a file of torch.save, without running code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from deltahub.errors import CheckpointError, PickleRefusedError
from deltahub.formats.foreign import require_plain

# Exceptions of torch.load for files that it did not write.
_DAMAGE: Final = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError),
    *(AttributeError, LookupError, MemoryError, TypeError),
)


def read_pickle(path: Path, *, allowed: bool) -> Mapping[str, Tensor]:
    """Read the tensors in a pickle, by name.

    Args:
        allowed: whether the pickle may be opened, with `weights_only=True`.

    Raises:
        PickleRefusedError: `allowed` is false.
        CheckpointError: the pickle is damaged, or holds more than tensors.
    """
    if not allowed:
        msg = (
            f"{path} is a Python pickle, which can run code when it is opened. If you trust its author, pass "
            "allow_pickle=True (only plain tensors are then read), and save_finetuned() it once to have it as safetensors."
        )
        raise PickleRefusedError(msg)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0]
        msg = f"{path} was not loaded: it is damaged, or holds more than plain tensors ({reason:.200}). Fetch it again."
        raise CheckpointError(msg) from error
    return require_plain(saved, path)
