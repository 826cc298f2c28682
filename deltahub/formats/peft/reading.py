"""Reader for PEFT's adapters: LoRA, IA3, LayerNorm tuning and soft prompts become equivalent deltas.

The inverse of `deltahub.formats.peft.method_export`. Every field of the config must be supported (`fields`), and every tensor that
it announces must be present and fit a module: an unmatched tensor is an error, so that none is silently ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import CONVERTED, Checkpoint
from deltahub.checkpoint.config import check_document
from deltahub.engine.filling import refuse_larger
from deltahub.engine.modules import own_modules
from deltahub.engine.site import delta_key
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files.atomic import sha256_file
from deltahub.formats.files import has_key, read_config, read_safetensors
from deltahub.formats.peft.export import CONFIG, WEIGHTS
from deltahub.formats.peft.fields import check_fields
from deltahub.formats.peft.lora_reading import lora
from deltahub.formats.peft.module_matching import at_input
from deltahub.formats.peft.saved_modules import own_values, trainable, trained
from deltahub.formats.peft.targets import targeted
from deltahub.formats.peft.tensor_names import Leaves, Names, sort_tensors
from deltahub.formats.torch_file import read_pickle
from deltahub.log import LOGGER
from deltahub.reference import Digest

PICKLE: Final = "adapter_model.bin"


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter saved by PEFT."""
    return has_key(folder / CONFIG, "peft_type")


def read(folder: Path, backbone: nn.Module, *, allow_pickle: bool) -> Checkpoint:
    """Read an adapter of PEFT.

    Args:
        backbone: the model of the adapter, used to tell its own tensors from the adapter's.
        allow_pickle: whether `adapter_model.bin` may be opened, with `weights_only=True`.

    Raises:
        PickleRefusedError: the weights are a pickle, and `allow_pickle` is false.
        ConfigError: the adapter has something without an equivalent in a delta.
        CheckpointError: the adapter is damaged, lacks tensors, or does not fit the backbone.
    """
    config = read_config(folder / CONFIG, "peft_adapter.v1")
    check_fields(config)
    kind, names = config["peft_type"], Names.of(backbone)
    weights, saved = _tensors(folder, backbone, allow_pickle=allow_pickle)
    _compare_names(config, backbone)
    leaves, own_tensors = sort_tensors(saved, kind, names)
    if odd := next((place for place, tensor in leaves.items() if not tensor.is_floating_point()), None):
        msg = f"{weights} holds {leaves[odd].dtype} for {odd[0] or odd[1]}; expected floats. Fetch it again."
        raise CheckpointError(msg)
    leaves = {place: _as_trained(tensor) for place, tensor in leaves.items()}
    _check_places(leaves, config, names, weights)
    replaced, alone = trained(own_tensors, config, names)
    if alone and kind != "LORA":
        module = min(alone)
        msg = (
            f"The adapter replaces {module} alone, which shares its weight with another layer of this {type(backbone).__name__}; only beside a "
            "LoRA can DeltaHub do that. Load it with PEFT."
        )
        raise ConfigError(msg)
    options, tensors = _READERS[kind](config, leaves, names, alone)
    document = {
        "format_version": 1,
        "backbone_class": type(backbone).__name__,
        "common_structure": False,
        "exclude_modules": [],
        "unfrozen_modules": ["deltas", *trainable(own_tensors, replaced, config, names)],
        **options,
    }
    check_document(document)
    parent = {"relation": CONVERTED, "digest": Digest.of_hex(sha256_file(weights)[0]), "format": "peft"}
    own = {names.tensors[name] for name in own_tensors}
    unchanged = sorted(name for name in own - replaced.keys() if len(names.shared_names(name)) == 1)
    return Checkpoint(folder, document, None, {**tensors, **replaced}, parent, tuple(unchanged))


def _as_trained(tensor: Tensor) -> Tensor:
    """Cast a tensor of the adapter as PEFT does on loading: half precision is computed and trained in float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _tensors(folder: Path, backbone: nn.Module, *, allow_pickle: bool) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights: their file, and its tensors by key, sorted by key."""
    path, pickled = folder / WEIGHTS, folder / PICKLE
    if not path.is_file() and pickled.is_file():
        refuse_larger(pickled, backbone)
        return pickled, dict(sorted(read_pickle(pickled, allowed=allow_pickle).items()))
    if not path.is_file():
        msg = f"{path} is missing, though {CONFIG} is there. Fetch the adapter again."
        raise CheckpointError(msg)
    refuse_larger(path, backbone)
    return path, dict(sorted(read_safetensors(path).items()))


def _check_places(leaves: Leaves, config: Mapping[str, Any], names: Names, weights: Path) -> None:
    """Refuse a file with tensors on other modules than its config names.

    Raises:
        CheckpointError: a module does not match; the message names the first.
    """
    modules = {module for module, _ in leaves}
    if not modules:
        msg = (
            f"{weights} holds no tensor of a {config['peft_type']}, though {CONFIG} says there is one. Fetch it again."
        )
        raise CheckpointError(msg)
    expected = targeted(config, names.modules, names.backbone)
    if expected is None:
        return
    tied = names.tied_with_embeddings() if config.get("ensure_weight_tying") else set()
    if missing := sorted(expected - modules):
        msg = f"{weights} has no tensors for {missing[0]}, on which {CONFIG} puts the adapter. Fetch it again, or load its own backbone."
        raise CheckpointError(msg)
    if extra := sorted(modules - expected - tied):
        msg = f"{weights} has tensors for {extra[0]}, which target_modules in {CONFIG} does not name; PEFT would leave them out. Add it there if it is meant."
        raise CheckpointError(msg)


def _compare_names(config: Mapping[str, Any], backbone: nn.Module) -> None:
    """Warn if an adapter was trained on a backbone of another name, the only hint in PEFT's files."""
    expected_name = str(config.get("base_model_name_or_path") or "").rstrip("/").rpartition("/")[2]
    actual_name = (
        str(getattr(getattr(backbone, "config", None), "_name_or_path", "") or "").rstrip("/").rpartition("/")[2]
    )
    if expected_name and actual_name and expected_name != actual_name:
        text = "The adapter was trained on %s, and this backbone is called %s: make sure that it is the same one."
        LOGGER.warning(text, expected_name, actual_name)


Converted = tuple[dict[str, Any], dict[str, Tensor]]
Alone = Mapping[str, Tensor]


def _ia3(config: Mapping[str, Any], leaves: Leaves, names: Names, alone: Alone) -> Converted:
    vectors = {module: vector for (module, _), vector in leaves.items()}
    for module, vector in vectors.items():
        if vector.dim() != 2 or 1 not in vector.shape:
            msg = f"The adapter's vector for {module} is {list(vector.shape)}, which is not that of a linear layer. Load it with PEFT."
            raise ConfigError(msg)
    options = {
        "delta_type": "ia3",
        "feedforward_modules": sorted(
            names.real[name] for name, vector in vectors.items() if _is_row(vector, name, config)
        ),
        "modified_modules": sorted(names.real[module] for module in vectors),
    }
    return options, {delta_key(names.real[module], "ia3_l"): vector.flatten() for module, vector in vectors.items()}


def _is_row(vector: Tensor, module: str, config: Mapping[str, Any]) -> bool:
    """Return whether a module is rescaled at its input: then PEFT keeps a row, ``(1, n_in)``, else a column."""
    if vector.shape[0] != vector.shape[1]:
        return vector.shape[0] == 1
    return module in at_input(config.get("feedforward_modules") or (), [module])


def _layer_norm(config: Mapping[str, Any], leaves: Leaves, names: Names, alone: Alone) -> Converted:
    live_values = own_values(names.backbone)
    tensors = {}
    for (module, key), value in leaves.items():
        live = live_values.get(f"{names.real[module]}.{key}")
        if live is None or live.shape != value.shape:
            msg = f"The adapter has a {key} {list(value.shape)} for {module}, which here has {'none' if live is None else list(live.shape)}. Load its own backbone."
            raise CheckpointError(msg)
        tensors[delta_key(names.real[module], key)] = value - live.detach().cpu().to(value.dtype)
    return {
        "delta_type": "layer_norm",
        "modified_modules": sorted({names.real[module] for module, _ in leaves}),
    }, tensors


def _soft_prompt(config: Mapping[str, Any], leaves: Leaves, names: Names, alone: Alone) -> Converted:
    home, count = "", int(config["num_virtual_tokens"])
    backbone, prompt = names.backbone, leaves["", "prompt_embeddings"]
    if getattr(getattr(backbone, "config", None), "is_encoder_decoder", False):
        encoder: Any = backbone.get_encoder()  # type: ignore[operator]
        home = next(name for name, module in own_modules(backbone) if module is encoder)
    if prompt.dim() != 2:
        msg = f"The adapter's prompt is {list(prompt.shape)}; expected one row for each token. Fetch it again."
        raise CheckpointError(msg)
    if len(prompt) != (total := count * int(config.get("num_transformer_submodules") or 1)):
        msg = f"The adapter's prompt has {len(prompt)} tokens, and its config says {total}. Fetch it again."
        raise CheckpointError(msg)
    soft = prompt[:count]  # the rest is for a decoder, and PEFT never uses it
    options = {"delta_type": "soft_prompt", "soft_token_num": count, "token_init": False, "common_structure": None}
    return options, {delta_key(home, "soft_embeds"): soft}


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any], Leaves, Names, Alone], Converted]]] = {
    "LORA": lora,
    "IA3": _ia3,
    "LN_TUNING": _layer_norm,
    "PROMPT_TUNING": _soft_prompt,
}
