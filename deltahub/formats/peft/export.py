"""Writer for PEFT adapters: `adapter_config.json` and `adapter_model.safetensors`.

The adapter gives the outputs of the delta, up to rounding; this is tested against PEFT itself. A delta without a PEFT equivalent is
refused with the reason. `deltahub.formats.peft.method_export` maps the tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from torch import nn

from deltahub.cache.cache import checked, read_cached
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.checkpoint import CARD, Checkpoint
from deltahub.checkpoint.from_files import foreign_in
from deltahub.errors import ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.backbone_check import require_recorded
from deltahub.formats.peft.adapter import Exported
from deltahub.formats.peft.method_export import exported, task_of
from deltahub.formats.peft.token_rows_export import PEFT_TYPE as TRAINABLE_TOKENS
from deltahub.formats.writing import Format, card, check_target, write_files, write_folder
from deltahub.hub.locating import locate

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_VLLM_RANK: Final = 16  # default of vLLM's --max-lora-rank
_NEEDS_NO_HEAD: Final = {"SEQ_2_SEQ_LM", "CAUSAL_LM"}  # for the other tasks PEFT expects the head in the file


def export_peft(
    path: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    backbone: str | os.PathLike[str] | nn.Module | None = None,
    check_hash: bool | str = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a delta as an adapter that `peft.PeftModel.from_pretrained`, vLLM and LoRAX load.

    Args:
        path: a folder, or a reference to pull.
        to: the folder to write: new, or with an adapter to replace.
        backbone: the delta's backbone: the folder, a model id in Hugging Face's cache, or the model. Only some deltas need it: those on
            parts of fused layers, to find their rows; LayerNorm tuning, whose values are added to the backbone's weights; trained layers
            that the delta holds only in part, or that may share their weights; and all whose layers cannot be identified by name alone.
        check_hash: as in `from_finetuned`: False for a backbone that is not the recorded one.
        cache_dir: the cache for pulled deltas, if not the default one.

    Returns:
        The folder written.

    Raises:
        ConfigError: PEFT has no equivalent of this delta, or the backbone is needed; the message says which.
        CheckpointError: the delta or the backbone cannot be read, or `to` holds something else.
        FingerprintMismatch: the backbone is not the one of the delta.
        StorageError: the disk is full or not writable; no partial adapter is left.
    """
    folder = Path(to).expanduser()
    check_target(folder, Format.PEFT)
    saved = read_cached(lambda: locate(path, cache_dir), _read)
    model_or_path = backbone if backbone is None or isinstance(backbone, nn.Module) else os.fspath(backbone)
    facts = Backbone.of(saved, model_or_path, exact=check_hash is True)
    require_recorded(saved, facts, check_hash)
    content = files(saved, facts)
    return write_folder(folder, Format.PEFT, lambda stage: write_files(content, stage))


def files(saved: Checkpoint, backbone: Backbone) -> dict[str, bytes]:
    """Return the files of an adapter, by name.

    Raises:
        ConfigError: PEFT has no equivalent of this delta, or the backbone is needed; the message says which.
        CheckpointError, FingerprintMismatch: the backbone is not the one of the delta.
    """
    adapter = exported(saved, backbone)
    config = {**_common(saved.document, adapter, backbone), **adapter.options}
    tensors = {name: tensor.contiguous() for name, tensor in sorted(adapter.tensors.items())}
    return {
        WEIGHTS: safetensors.torch.save(tensors, {"format": "pt"}),
        CARD: card(saved, config["base_model_name_or_path"], "peft"),
        CONFIG: f"{json.dumps(config, indent=2, sort_keys=True)}\n".encode(),
    }


def _read(folder: Path) -> Checkpoint:
    with checked(folder) as (place, config_sha256):
        if not checkpoint.is_checkpoint(place) and (foreign := foreign_in(place)):
            way_out = (
                "Copy its files as they are: deltahub pull REF --to DIR"
                if foreign.format == "peft"
                else "Convert it on its backbone: deltahub convert SRC DST --format peft --backbone MODEL"
            )
            msg = f"{folder} holds a delta in the format {foreign.format}; expected one that DeltaHub saved. {way_out}."
            raise ConfigError(msg)
        return replace(checkpoint.read(place, config_sha256=config_sha256), folder=folder)


def _common(document: Mapping[str, Any], adapter: Exported, backbone: Backbone) -> dict[str, Any]:
    """Return the config keys common to all adapters."""
    task = task_of(backbone.class_name, backbone.model_class)
    if task not in _NEEDS_NO_HEAD and not adapter.needs_task:
        task = None
    mapping = {"base_model_class": backbone.class_name, "parent_library": "transformers"}
    return {
        "auto_mapping": None if task or backbone.model_class is None else mapping,
        "base_model_name_or_path": backbone.named or _name(document),
        "inference_mode": True,
        **({} if adapter.peft_type == TRAINABLE_TOKENS else {"modules_to_save": adapter.modules_to_save or None}),
        "peft_type": adapter.peft_type,
        "revision": document.get("backbone_revision"),
        "task_type": task,
    }


def _name(document: Mapping[str, Any]) -> str:
    recorded_name = document.get("metadata", {}).get("backbone_model")
    return str(recorded_name or document.get("backbone_checkpoint_name") or "")


def serving_notes(folder: Path) -> list[str]:
    """Describe how servers other than PEFT treat an adapter, in sentences; empty if vLLM and LoRAX serve it as it is.

    vLLM refuses unknown options. LoRAX ignores them silently and so gives other outputs.

    Args:
        folder: the folder of the adapter.
    """
    if notes := refusals_of_vllm(folder):
        return notes
    config = json.loads((folder / CONFIG).read_bytes())
    notes = []
    if config["r"] > _VLLM_RANK:
        notes.append(f"Start vLLM with --max-lora-rank {_next_rank(config['r'])}: its rank is {config['r']}.")
    if any("." in name for name in config["target_modules"]):
        notes.append("Not for LoRAX, which leaves out a LoRA on some layers of a kind; this one is not on all of them.")
    return notes


def refusals_of_vllm(folder: Path) -> list[str]:
    """Describe why vLLM does not serve an adapter as it is, in sentences; empty if it does, with a sufficient --max-lora-rank.

    Args:
        folder: the folder of the adapter.
    """
    config = json.loads((folder / CONFIG).read_bytes())
    if config["peft_type"] != "LORA":
        return [f"vLLM and LoRAX serve LoRA only; this is {config['peft_type']}, for PEFT itself."]
    beyond = []
    if config.get("modules_to_save"):
        beyond.append(f"replaces {', '.join(config['modules_to_save'])}")
    if config.get("bias", "none") != "none":
        beyond.append("replaces biases")
    if config.get("use_dora"):
        beyond.append("is DoRA")
    if config.get("lora_bias"):
        beyond.append("has biases of B")
    if config.get("target_parameters"):
        beyond.append("acts on parameters of experts or routers")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        beyond.append("has ranks or scales of its own in some layers")
    if beyond:
        return [f"vLLM refuses it, and LoRAX would leave out a part: it also {' and '.join(beyond)}."]
    if isinstance(config["target_modules"], str):
        return ["Not for vLLM or LoRAX, which take names of layers; no list of names means these layers alone."]
    return []


def _next_rank(rank: int) -> int:
    """Return the smallest sufficient value that vLLM's option accepts."""
    return next((size for size in (32, 64, 128, 256, 320, 512) if size >= rank), rank)
