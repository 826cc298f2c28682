"""Reader for the checkpoints of AdapterHub's `adapters` library, releases 1.x.

Every field of the config must be supported (`fields`), the file must hold exactly the tensors that the config announces for this
backbone, and each must fit: `adapters` itself would fill what is missing with random values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import CONVERTED, LARGEST_CONFIG, Checkpoint
from deltahub.checkpoint.config import check_document
from deltahub.engine.filling import refuse_larger, replaced_names
from deltahub.errors import CheckpointError, ConfigError, DeltaHubError
from deltahub.files.atomic import read_limited, sha256_file
from deltahub.files.documents import parse
from deltahub.formats.adapters.fields import WAY_OUT, check_fields
from deltahub.formats.adapters.heads import read_head
from deltahub.formats.adapters.names import Backbone
from deltahub.formats.adapters.parts import convert
from deltahub.formats.files import read_config, read_safetensors
from deltahub.formats.torch_file import read_pickle
from deltahub.reference import Digest

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter.safetensors"
PICKLE: Final = "pytorch_adapter.bin"
# Files beside an adapter that change what a model with it computes.
_BESIDE: Final[Mapping[str, str]] = {
    "adapter_interface.json": "an adapter made for a model outside adapters' own families",
    "adapter_fusion_config.json": "an AdapterFusion of several adapters",
    "adapter_setup.json": "a composition of several adapters",
}


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds something saved by `adapters`."""
    if any((folder / name).is_file() for name in ("adapter_fusion_config.json", "adapter_setup.json")):
        return True
    try:
        document = parse(read_limited(folder / CONFIG, LARGEST_CONFIG))
    except (DeltaHubError, ValueError):
        return False
    return isinstance(document, dict) and "peft_type" not in document and isinstance(document.get("config"), dict | str)


def read(folder: Path, backbone: nn.Module, *, allow_pickle: bool) -> Checkpoint:
    """Read an adapter of `adapters`.

    Args:
        backbone: the model of the adapter.
        allow_pickle: whether `pytorch_adapter.bin` may be opened, with `weights_only=True`.

    Raises:
        PickleRefusedError: the weights are a pickle, and `allow_pickle` is false.
        ConfigError: the adapter has something without an equivalent in a delta.
        CheckpointError: the adapter is damaged, lacks tensors, or does not fit the backbone.
    """
    for name, description in _BESIDE.items():
        if (folder / name).is_file():
            msg = f"{folder} holds {description} ({name}), which DeltaHub does not load. {WAY_OUT}"
            raise ConfigError(msg)
    document = read_config(folder / CONFIG, "adapters_config.v1")
    check_fields(document)
    place = Backbone.of(backbone)
    expected_type = document.get("model_type")
    if expected_type and expected_type != place.model_type:
        msg = f"The adapter was made for a {expected_type}, and this {type(backbone).__name__} is a {place.model_type}. Load its own backbone."
        raise CheckpointError(msg)
    weights, saved = _tensors(folder, backbone, allow_pickle=allow_pickle)
    options, tensors = convert(document["config"], saved, place)
    head, unchanged = read_head(folder, backbone, allow_pickle=allow_pickle)
    converted = {
        "format_version": 1,
        "backbone_class": type(backbone).__name__,
        "common_structure": False,
        "exclude_modules": [],
        "unfrozen_modules": ["deltas", *sorted({*replaced_names(tensors), *head})],
        **options,
    }
    check_document(converted)
    parent = {"relation": CONVERTED, "digest": Digest.of_hex(sha256_file(weights)[0]), "format": "adapters"}
    return Checkpoint(folder, converted, None, {**tensors, **head}, parent, unchanged)


def _tensors(folder: Path, backbone: nn.Module, *, allow_pickle: bool) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights: their file, and its tensors by key, in at least float32, in which `adapters` computes them.

    Raises:
        CheckpointError: there are none, or one is not of floats.
    """
    path = folder / WEIGHTS
    if not path.is_file() and (folder / PICKLE).is_file():
        path = folder / PICKLE
    if not path.is_file():
        msg = f"{path} is missing, though {CONFIG} is there. Fetch the adapter again."
        raise CheckpointError(msg)
    refuse_larger(path, backbone)
    saved = read_safetensors(path) if path.name == WEIGHTS else read_pickle(path, allowed=allow_pickle)
    if odd := next((key for key, tensor in saved.items() if not tensor.is_floating_point()), None):
        msg = f"{path} holds {saved[odd].dtype} for {odd}; expected floats. Fetch it again."
        raise CheckpointError(msg)
    return path, {key: t.to(torch.promote_types(t.dtype, torch.float32)) for key, t in sorted(saved.items())}
