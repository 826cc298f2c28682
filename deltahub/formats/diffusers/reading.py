"""Reader for the LoRA, LoHa and LoKr of image models in one safetensors file.

The part of the file for this backbone must be complete and fit it, so that no tensor is silently ignored. The scale comes from

    lora_adapter_metadata    in the file's header, where diffusers keeps PEFT's config for each model
    X.alpha                  beside the tensors of each layer, in kohya's files and in some of diffusers
    neither                  1

and two of them at once are refused, as an alpha on some layers only is, which programs complete in different ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from deltahub.checkpoint.checkpoint import CONVERTED, Checkpoint
from deltahub.checkpoint.config import check_document
from deltahub.checkpoint.safetensors_header import metadata_of, tensor_table
from deltahub.engine.filling import refuse_larger
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files.atomic import sha256_file
from deltahub.files.documents import parse, problem
from deltahub.formats.diffusers import low_rank, lycoris
from deltahub.formats.diffusers.keys import ALPHA, LOHA, LOKR, METADATA, MIDDLE, SCALE, parse_key
from deltahub.formats.diffusers.parts import WAY_OUT, Part, own_part
from deltahub.formats.files import read_safetensors
from deltahub.formats.peft.adapter_types import TYPES
from deltahub.formats.peft.fields import check_fields
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter
from deltahub.formats.peft.tensor_names import Leaves, Names
from deltahub.reference import Digest

_CONFIGS: Final = ("config.json", "adapter_config.json")  # of other formats
_KINDS: Final[Mapping[str, tuple[frozenset[str], Callable[[SavedAdapter, Mapping[str, float]], Converted]]]] = {
    "LOHA": (LOHA | {ALPHA}, lycoris.loha),
    "LOKR": (LOKR | {ALPHA}, lycoris.lokr),
    "LORA": (low_rank.LEAVES, low_rank.lora),
}
# Fields of PEFT's config with tensors that diffusers does not keep in its file.
_BESIDE: Final = ("modules_to_save", "target_parameters", "trainable_token_indices")


def is_lora(folder: Path) -> bool:
    """Return whether a folder holds a single safetensors file with the names of such a delta, and no config."""
    path = _weights(folder)
    if path is None:
        return False
    try:
        return any(parse_key(entry.name) for entry in tensor_table(path))
    except CheckpointError:
        return False


def read(folder: Path, backbone: nn.Module) -> Checkpoint:
    """Read the updates of a model from a file of diffusers, kohya or LyCORIS.

    Args:
        backbone: the model, such as a U-Net or a text encoder; updates of other models in the file are left out with a warning.

    Raises:
        ConfigError: the file has something without an equivalent in a delta.
        CheckpointError: the file is damaged, or holds nothing that fits the backbone.
    """
    path = _weights(folder)
    assert path is not None
    refuse_larger(path, backbone)
    header = metadata_of(path)
    saved, names = read_safetensors(path), Names.of(backbone)
    part = own_part(saved, names)
    _refuse_rslora(header, part)
    config = _peft_config(header, part, path)
    kind = _kind(part)
    alphas = _alphas(part)
    adapter = SavedAdapter(config, _in_one_precision(part), names, {})
    converted = _by_config(adapter, kind, alphas) if config else _KINDS[kind][1](adapter, alphas)
    document = {
        "format_version": 1,
        "backbone_class": type(backbone).__name__,
        "common_structure": False,
        "exclude_modules": [],
        "unfrozen_modules": ["deltas"],
        **converted.options,
    }
    check_document(document)
    origin = "kohya" if part.flat else "diffusers"
    parent = {"relation": CONVERTED, "digest": Digest.of_hex(sha256_file(path)[0]), "format": origin}
    return Checkpoint(folder, document, None, converted.tensors, parent)


def _in_one_precision(part: Part) -> Leaves:
    """Return the tensors of a part in the widest of their precisions, float32 at least, in which they are computed and trained."""
    leaves = {(layer, leaf): t for layer, own in part.layers.items() for leaf, t in own.items() if leaf != ALPHA}
    wide = reduce(torch.promote_types, (tensor.dtype for tensor in leaves.values()), torch.float32)
    return {place: tensor.to(wide) for place, tensor in leaves.items()}


def _weights(folder: Path) -> Path | None:
    """Return the only safetensors file of a folder without a config; None if it is another kind of folder."""
    if not folder.is_dir() or any((folder / name).exists() for name in _CONFIGS):
        return None
    paths = [path for path in folder.iterdir() if path.name.endswith(".safetensors") and path.is_file()]
    return paths[0] if len(paths) == 1 else None


def _kind(part: Part) -> str:
    """Return the method of a part.

    Raises:
        CheckpointError: it holds no update.
        ConfigError: it is of several methods, or has a magnitude beside LoHa or LoKr.
    """
    leaves = {leaf for own in part.layers.values() for leaf in own}
    kind = next((kind for kind, (known, _) in _KINDS.items() if leaves & known - {ALPHA}), "")
    if not kind:
        msg = "The file holds an alpha for its layers and no update. Fetch it again."
        raise CheckpointError(msg)
    if others := sorted(leaves - _KINDS[kind][0]):
        layer = next(name for name, own in part.layers.items() if others[0] in own)
        msg = f"The file is a {kind} with {others[0]} for {layer}: a delta has one method. {WAY_OUT}"
        raise ConfigError(msg)
    return kind


def _alphas(part: Part) -> dict[str, float]:
    """Return the alpha of each layer; empty if the file has none.

    Raises:
        CheckpointError: one is not a positive number.
        ConfigError: only some layers have one.
    """
    alphas: dict[str, float] = {}
    for layer, leaves in part.layers.items():
        if ALPHA not in leaves:
            continue
        values = leaves[ALPHA].flatten().tolist()
        if len(values) != 1 or not 0 < values[0] < math.inf:
            shown = f"{values[0]}" if len(values) == 1 else f"{len(values)} numbers"
            msg = f"The file's alpha for {layer} is {shown}; expected a positive number. Fetch it again."
            raise CheckpointError(msg)
        alphas[layer] = float(values[0])
    if alphas and (without := sorted(part.layers.keys() - alphas.keys())):
        msg = f"The file has an alpha for some layers and none for others, such as {without[0]}, whose scale it leaves open. {WAY_OUT}"
        raise ConfigError(msg)
    return alphas


def _refuse_rslora(header: Mapping[str, str], part: Part) -> None:
    """Refuse a file of LyCORIS with rsLoRA: its releases keep different numbers as the alpha.

    Raises:
        ConfigError: the header says that it is one.
    """
    arguments = _json(header.get("ss_network_args", ""))
    if part.flat and isinstance(arguments, dict) and str(arguments.get("rs_lora", False)).lower() in ("true", "1"):
        msg = f"The file was trained with rs_lora, and its alpha does not tell the scale: releases of LyCORIS keep different numbers. {WAY_OUT}"
        raise ConfigError(msg)


# ----- the config in the header -----


def _peft_config(header: Mapping[str, str], part: Part, path: Path) -> dict[str, Any]:
    """Return PEFT's config of a part from the header of a file of diffusers; empty if there is none.

    Raises:
        CheckpointError: it is not a config.
        ConfigError: it is not usable.
    """
    if METADATA not in header:
        return {}
    document = _json(header[METADATA])
    if not isinstance(document, dict):
        msg = f"{path} has {METADATA} that is not a JSON object. Fetch it again."
        raise CheckpointError(msg)
    prefix = f"{part.model}." if part.model else ""
    config = {key.removeprefix(prefix): value for key, value in document.items() if key.startswith(prefix)}
    if not config:
        return {}
    config.setdefault("peft_type", "LORA")
    if wrong := problem(config, "peft_adapter.v1"):
        msg = f"{path} cannot work: in {METADATA} {wrong}. Fetch it again, or ask its author."
        raise ConfigError(msg)
    return config


def _json(text: str) -> Any:
    try:
        return parse(text.encode())
    except ValueError:
        return None


def _by_config(adapter: SavedAdapter, kind: str, alphas: Mapping[str, float]) -> Converted:
    """Convert an adapter with PEFT's config, as PEFT does.

    Raises:
        ConfigError: the config has something without an equivalent in a delta.
        CheckpointError: the tensors are not those that the config announces.
    """
    config = adapter.config
    if alphas:
        msg = f"The file has both {METADATA} and alphas, which diffusers refuses too. {WAY_OUT}"
        raise ConfigError(msg)
    if config["peft_type"] != kind:
        msg = f"The file holds a {kind}, and {METADATA} says {config['peft_type']!r:.40}. Fetch it again."
        raise CheckpointError(msg)
    if extra := next((leaf for _, leaf in adapter.leaves if leaf in (MIDDLE, SCALE)), None):
        msg = f"The file has {METADATA} of PEFT and {extra}, which PEFT does not know. {WAY_OUT}"
        raise ConfigError(msg)
    check_fields(config)
    if beside := next((key for key in _BESIDE if config.get(key)), None):
        msg = f"The file is of a delta with {beside}, and does not hold their tensors. Save it with PEFT."
        raise ConfigError(msg)
    if (config.get("bias") or "none") != "none":
        msg = f"The file is of a delta with bias={config['bias']!r}, and does not hold the biases. Save it with PEFT."
        raise ConfigError(msg)
    return TYPES[kind].read(adapter)
