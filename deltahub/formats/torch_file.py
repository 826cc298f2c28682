"""Tensors in a file of torch.save, read without running code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from deltahub.errors import CheckpointError, PickleRefusedError


def read_pickle(path: Path, *, allowed: bool) -> Mapping[str, Tensor]:
    """The tensors in a pickle, by name.

    Args:
        allowed: whether it may be opened, with `weights_only=True`.

    Raises:
        PickleRefusedError: it may not.
        CheckpointError: it is damaged, or holds more than tensors.
    """
    if not allowed:
        msg = (
            f"{path} is a Python pickle, which can run code when it is opened. If you trust its author, pass "
            "allow_pickle=True (only plain tensors are then read), and save_finetuned() it once to have it as safetensors."
        )
        raise PickleRefusedError(msg)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        msg = f"{path} was not loaded: it is damaged, or holds more than plain tensors ({reason}). Fetch it again."
        raise CheckpointError(msg) from error
    if not isinstance(saved, Mapping) or not all(isinstance(tensor, Tensor) for tensor in saved.values()):
        msg = f"{path} holds something else than tensors by name. Save the delta again."
        raise CheckpointError(msg)
    return saved
