"""Reading PEFT's adapters: LoRA, IA3, LayerNorm tuning and soft prompts become the deltas that say the same.

The inverse of `deltahub.formats.peft_mapping`. A LoRA with several ranks or scales becomes one of the largest rank: the rest of it is 0,
and B takes the difference in scale. Every tensor must find its place; what has none is an error, not a tensor that does nothing.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.checkpoint import CONVERTED, Checkpoint
from deltahub.config import check_document
from deltahub.engine.fingerprint import backbone_tensors
from deltahub.engine.freezing import running_statistics
from deltahub.engine.modules import own_modules
from deltahub.engine.site import delta_key
from deltahub.errors import CheckpointError, ConfigError, PickleRefusedError
from deltahub.files import sha256_file
from deltahub.formats.peft import CONFIG, WEIGHTS

LOGGER: Final = logging.getLogger("deltahub")
PICKLE: Final = "adapter_model.bin"
_WRAPPERS: Final = re.compile(r"\.(?:base_layer|modules_to_save)\.")
_PREFIX: Final = re.compile(r"base_model\.(?:model\.)?")
# Options of PEFT's LoRA that change what it computes, and that no delta has.
_UNKNOWN: Final = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_LEAVES: Final = {
    "LORA": re.compile(
        r"(?P<module>.+)\.(?:lora_(?:embedding_)?(?P<side>[AB])(?:\.weight)?|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?)"
    ),
    "IA3": re.compile(r"(?P<module>.+)\.ia3_l"),
    "LN_TUNING": re.compile(r"(?P<module>.+)\.ln_tuning_layers\.(?P<side>weight|bias)"),
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter that PEFT saved."""
    try:
        return "peft_type" in json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def read(folder: Path, backbone: nn.Module) -> Checkpoint:
    """Read an adapter of PEFT.

    Args:
        backbone: the model it is for, which tells its own tensors from those of the adapter.

    Raises:
        PickleRefusedError: its weights are a pickle.
        ConfigError: no delta says what it says.
        CheckpointError: it is damaged, or does not fit the backbone.
    """
    config = json.loads((folder / CONFIG).read_bytes())
    kind = config["peft_type"]
    readers = {"LORA": _lora, "IA3": _ia3, "LN_TUNING": _layer_norm, "PROMPT_TUNING": _soft_prompt}
    if kind not in readers:
        msg = f"{folder} is an adapter of PEFT of type {kind}, which no delta says; known are {', '.join(readers)}. Load it with PEFT."
        raise ConfigError(msg)
    saved = {_PREFIX.sub("", name, count=1): tensor for name, tensor in sorted(_tensors(folder).items())}
    _compare_names(config, backbone)
    modules = {name for name, _ in own_modules(backbone)}
    own: dict[str, Tensor] = {}
    leaves: dict[tuple[str, str], Tensor] = {}
    for name, tensor in saved.items():
        match = _LEAVES[kind].fullmatch(name) if kind in _LEAVES else None
        if match:
            parts = match.groupdict()
            leaf = parts.get("side") or parts.get("magnitude") or ""
            leaves[match["module"], leaf] = tensor
        elif name == "prompt_embeddings":
            leaves["", name] = tensor
        elif ".original_module." not in name:  # of a layer that is replaced; with bias="all" PEFT saves its bias too
            own[_WRAPPERS.sub(".", name)] = tensor
    if missing := sorted({module for module, _ in leaves} - modules):
        msg = f"The adapter sits on {missing[0]}, which this {type(backbone).__name__} does not have. Load its own backbone."
        raise CheckpointError(msg)
    if not leaves:
        msg = f"{folder / WEIGHTS} holds no tensor of a {kind}, though {CONFIG} says there is one. Fetch it again."
        raise CheckpointError(msg)
    options, tensors = readers[kind](config, leaves, backbone)
    trained = _trained(own, backbone)
    document = {
        "format_version": 1,
        "backbone_class": type(backbone).__name__,
        "common_structure": False,
        "exclude_modules": [],
        "unfrozen_modules": ["deltas", *sorted({name.rpartition(".")[0] for name in trained})],
        **options,
    }
    check_document(document)
    parent = {"relation": CONVERTED, "digest": f"sha256:{sha256_file(folder / WEIGHTS)[0]}", "format": "peft"}
    return Checkpoint(folder, document, None, {**tensors, **trained}, parent)


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file() and (folder / PICKLE).is_file():
        msg = (
            f"{folder / PICKLE} is a Python pickle, which can run code when it is opened. Save the adapter as safetensors: load it with "
            "PEFT where you trust its author, and call save_pretrained."
        )
        raise PickleRefusedError(msg)
    if not path.is_file():
        msg = f"{path} is missing, though {CONFIG} is there. Fetch the adapter again."
        raise CheckpointError(msg)
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        msg = f"{path} is not a safetensors file ({error}). Fetch the adapter again."
        raise CheckpointError(msg) from error


def _compare_names(config: Mapping[str, Any], backbone: nn.Module) -> None:
    """Say so if an adapter was trained on a backbone of another name: PEFT's files tell no more than that."""
    wanted = str(config.get("base_model_name_or_path") or "").rstrip("/").rpartition("/")[2]
    found = str(getattr(getattr(backbone, "config", None), "_name_or_path", "") or "").rstrip("/").rpartition("/")[2]
    if wanted and found and wanted != found:
        text = "The adapter was trained on %s, and this backbone is called %s: make sure that it is the same one."
        LOGGER.warning(text, wanted, found)


def _trained(own: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors of the backbone that the adapter replaces; those that are the backbone's are left out.

    Raises:
        CheckpointError: the backbone has none of that name or shape.
    """
    there = {**running_statistics(backbone), **dict(backbone_tensors(backbone))}
    found = {}
    for name, tensor in own.items():
        if name not in there or there[name].shape != tensor.shape:
            shape = f"is {list(there[name].shape)} there" if name in there else "is not there"
            msg = f"{name} {list(tensor.shape)} is no part of the method, and {shape} in this {type(backbone).__name__}. Load its own backbone."
            raise CheckpointError(msg)
        if not torch.equal(there[name].detach().cpu().to(tensor.dtype), tensor):
            found[name] = tensor
    return found


Leaves = Mapping[tuple[str, str], Tensor]
Said = tuple[dict[str, Any], dict[str, Tensor]]


def _lora(config: Mapping[str, Any], leaves: Leaves, backbone: nn.Module) -> Said:
    if strange := [key for key in _UNKNOWN if config.get(key)]:
        msg = f"The adapter is a LoRA with {strange[0]}={config[strange[0]]!r}, which no delta has. Load it with PEFT."
        raise ConfigError(msg)
    modules = sorted({module for module, _ in leaves})
    downs, ups = ({module: leaves[module, side] for module in modules if (module, side) in leaves} for side in "AB")
    if broken := [module for module in modules if module not in downs or module not in ups]:
        msg = f"The adapter has only one of A and B for {broken[0]}. Fetch it again."
        raise CheckpointError(msg)
    if deep := [module for module in modules if downs[module].dim() != 2]:
        msg = f"The adapter acts on {deep[0]}, a convolution, where a delta has no LoRA. Load it with PEFT."
        raise ConfigError(msg)
    scales = {module: _scale(config, module, len(downs[module])) for module in modules}
    rank = max(map(len, downs.values()))
    uniform = len({*scales.values()}) == 1
    scale = scales[modules[0]] if uniform else 1.0
    tensors: dict[str, Tensor] = {}
    for module in modules:
        extra = rank - len(downs[module])
        up = ups[module] if uniform else ups[module] * scales[module]
        tensors[delta_key(module, "lora_A")] = F.pad(downs[module], (0, 0, 0, extra)) if extra else downs[module]
        tensors[delta_key(module, "lora_B")] = F.pad(up, (0, extra)) if extra else up
        if config.get("use_dora"):
            tensors[delta_key(module, "lora_magnitude_vector")] = leaves[module, "lora_magnitude_vector"].flatten()
    options = {
        "delta_type": "lora",
        "lora_alpha": scale * rank,
        "lora_dropout": float(config.get("lora_dropout") or 0.0),
        "lora_r": rank,
        "modified_modules": modules,
        "use_dora": bool(config.get("use_dora")),
    }
    return options, tensors


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What the update of a module is multiplied by."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _ia3(config: Mapping[str, Any], leaves: Leaves, backbone: nn.Module) -> Said:
    inner = sorted(module for (module, _), vector in leaves.items() if _is_row(vector, module, config))
    options = {
        "delta_type": "ia3",
        "feedforward_modules": inner,
        "modified_modules": sorted(module for module, _ in leaves),
    }
    return options, {delta_key(module, "ia3_l"): vector.flatten() for (module, _), vector in leaves.items()}


def _is_row(vector: Tensor, module: str, config: Mapping[str, Any]) -> bool:
    """Whether a module is rescaled at its input: then PEFT keeps a row, ``(1, n_in)``, else a column."""
    if vector.shape[0] != vector.shape[1]:
        return vector.shape[0] == 1
    names = config.get("feedforward_modules") or ()
    return any(module == name or module.endswith(f".{name}") for name in ([names] if isinstance(names, str) else names))


def _layer_norm(config: Mapping[str, Any], leaves: Leaves, backbone: nn.Module) -> Said:
    own = dict(backbone_tensors(backbone))
    tensors = {
        delta_key(module, key): value - own[f"{module}.{key}"].detach().cpu().to(value.dtype)
        for (module, key), value in leaves.items()
    }
    return {"delta_type": "layer_norm", "modified_modules": sorted({module for module, _ in leaves})}, tensors


def _soft_prompt(config: Mapping[str, Any], leaves: Leaves, backbone: nn.Module) -> Said:
    home, count = "", int(config["num_virtual_tokens"])
    if getattr(getattr(backbone, "config", None), "is_encoder_decoder", False):
        encoder: Any = backbone.get_encoder()  # type: ignore[operator]
        home = next(name for name, module in own_modules(backbone) if module is encoder)
    soft = leaves["", "prompt_embeddings"][:count]  # what follows is for a decoder, and PEFT never uses it
    options = {"delta_type": "soft_prompt", "soft_token_num": count, "token_init": False, "common_structure": None}
    return options, {delta_key(home, "soft_embeds"): soft}
