"""Folders that hold a delta by the names of their files, whether or not those can be read."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from deltahub.checkpoint.gguf_header import read_header
from deltahub.checkpoint.safetensors_header import tensor_table
from deltahub.errors import CheckpointError
from deltahub.files.atomic import read_limited, read_range
from deltahub.files.documents import parse

_ADAPTER_CONFIG: Final = "adapter_config.json"
_LORA: Final = "pytorch_lora_weights.safetensors"  # of diffusers
_NAMES: Final = (  # files that only a delta has
    *("delta_config.json", "delta.safetensors", _ADAPTER_CONFIG, _LORA),
    *("adapter_model.safetensors", "adapter_model.bin", "adapter.safetensors", "pytorch_adapter.bin"),
)
_GGUF: Final = "*.gguf"
_LARGEST: Final = 8 << 20  # bytes of a config


def is_named_delta(folder: Path) -> bool:
    """Return whether a folder has a file that only a delta has, or a GGUF file that cannot be read."""
    if any((folder / name).is_file() for name in _NAMES):
        return True
    try:
        _read_ggufs(folder)
    except CheckpointError:
        return True
    return False


def refuse_damaged(folder: Path) -> None:
    """Refuse a folder without a delta if the reason is one file of a delta that cannot be read.

    Raises:
        CheckpointError: the config of an adapter is not a JSON object, or the header of a LoRA's weights is malformed.
    """
    if (path := folder / _ADAPTER_CONFIG).is_file():
        try:
            document = parse(read_limited(path, _LARGEST))
        except ValueError as error:
            msg = f"{path} is not JSON ({error}). Fetch or save the adapter again."
            raise CheckpointError(msg) from error
        if not isinstance(document, dict):
            msg = f"{path} holds {document!r:.40}, expected an object with the adapter's options. Fetch or save the adapter again."
            raise CheckpointError(msg)
    if (folder / _LORA).is_file():
        tensor_table(folder / _LORA)
    _read_ggufs(folder)


def _read_ggufs(folder: Path) -> None:
    for path in sorted(folder.glob(_GGUF)):
        if path.is_file():
            read_header(partial(read_range, path), path.stat().st_size, str(path))
