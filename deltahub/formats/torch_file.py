"""Reader for tensors in a file of torch.save, without running code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from deltahub.errors import CheckpointError, PickleRefusedError
from deltahub.files.atomic import open_file
from deltahub.formats.files import require_plain

# Exceptions of torch.load for files that it did not write.
_DAMAGE: Final = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, BadZipFile),
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
        _refuse_packed(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0]
        msg = f"{path} was not loaded: it is damaged, or holds more than plain tensors ({reason:.200}). Fetch it again."
        raise CheckpointError(msg) from error
    return require_plain(saved, path)


def _refuse_packed(path: Path) -> None:
    """Refuse an archive whose parts are longer than itself, by compression or by sharing bytes; torch.save writes none.

    Raises:
        ValueError: it is one.
    """
    with open_file(path) as file:
        if not is_zipfile(file):
            return
        parts = ZipFile(file).infolist()
        size = file.seek(0, os.SEEK_END)
    if any(part.compress_type != ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        msg = "its parts are packed, and torch.save packs none"
        raise ValueError(msg)
