"""Reader for the checkpoints of AdapterHub's `adapters` library, releases 1.x.

Every field of the config must be supported (`fields`), the file must hold exactly the tensors that the config announces for this
backbone, and each must fit: `adapters` itself would fill what is missing with random values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import CONVERTED, LARGEST_CONFIG, Checkpoint
from deltahub.checkpoint.config import check_document
from deltahub.engine.filling import refuse_larger, replaced_names
from deltahub.errors import CheckpointError, ConfigError, DeltaHubError
from deltahub.files.atomic import read_limited, sha256_file
from deltahub.files.documents import parse
from deltahub.formats.adapters import fusion
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
    _refuse_beside(folder)
    if (folder / fusion.CONFIG).is_file():
        weights, options, tensors = _read_fusion(folder, backbone, allow_pickle=allow_pickle)
    else:
        weights, options, tensors = _read_adapter(folder, backbone, allow_pickle=allow_pickle)
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


def _refuse_beside(folder: Path) -> None:
    for name, description in _BESIDE.items():
        if (folder / name).is_file():
            msg = f"{folder} holds {description} ({name}), which DeltaHub does not load. {WAY_OUT}"
            raise ConfigError(msg)


def _read_adapter(
    folder: Path, backbone: nn.Module, *, allow_pickle: bool
) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """Read an adapter, and return the file of its weights, and its options and tensors as a delta."""
    document = read_config(folder / CONFIG, "adapters_config.v1")
    check_fields(document)
    place = _fitting(document, backbone)
    weights, saved = _tensors(folder, backbone, allow_pickle=allow_pickle)
    return weights, *convert(document["config"], saved, place)


def _read_fusion(
    folder: Path, backbone: nn.Module, *, allow_pickle: bool
) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """Read an AdapterFusion and its adapters, and return the file of its own weights, and its options and tensors as a delta."""
    document, members = fusion.members_of(folder)
    place = _fitting(document, backbone)
    weights, saved = _tensors(folder, backbone, fusion.WEIGHTS, allow_pickle=allow_pickle)
    inner = [
        (member.document, _tensors(member.folder, backbone, allow_pickle=allow_pickle)[1])
        for member in members
        if _fitting(member.document, backbone)
    ]
    return weights, *fusion.fusion(document, saved, inner, place)


def _fitting(document: Mapping[str, Any], backbone: nn.Module) -> Backbone:
    """Return the names in a backbone.

    Raises:
        CheckpointError: the adapter was made for another type of models.
    """
    place = Backbone.of(backbone)
    expected_type = document.get("model_type")
    if expected_type and expected_type != place.model_type:
        msg = f"The adapter was made for a {expected_type}, and this {type(backbone).__name__} is a {place.model_type}. Load its own backbone."
        raise CheckpointError(msg)
    return place


def _tensors(
    folder: Path, backbone: nn.Module, names: tuple[str, str] = (WEIGHTS, PICKLE), *, allow_pickle: bool
) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights: their file, and its tensors by key, in at least float32, in which `adapters` computes them.

    Raises:
        CheckpointError: there are none, or one is not of floats.
    """
    path, pickled = (folder / name for name in names)
    if not path.is_file() and pickled.is_file():
        path = pickled
    if not path.is_file():
        msg = f"{path} is missing, though its config is there. Fetch the adapter again."
        raise CheckpointError(msg)
    refuse_larger(path, backbone)
    saved = read_safetensors(path) if path.name == names[0] else read_pickle(path, allowed=allow_pickle)
    if odd := next((key for key, tensor in saved.items() if not tensor.is_floating_point()), None):
        msg = f"{path} holds {saved[odd].dtype} for {odd}; expected floats. Fetch it again."
        raise CheckpointError(msg)
    return path, {key: t.to(torch.promote_types(t.dtype, torch.float32)) for key, t in sorted(saved.items())}
