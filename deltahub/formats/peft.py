"""Writing deltas as PEFT's adapters: `adapter_config.json` and `adapter_model.safetensors`.

The adapter gives the outputs that the delta gives, to a rounding: that is tested against PEFT itself. What PEFT has no form for is
refused with the reason. Which tensor becomes which is in `deltahub.formats.peft_mapping`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import safetensors.torch

from deltahub import checkpoint
from deltahub.cache.reading import checked, read_cached
from deltahub.checkpoint import CARD, Checkpoint
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files import move_all, staging, storage_errors, sync_folders, write_synced
from deltahub.formats.peft_adapter import Exported
from deltahub.formats.peft_mapping import exported
from deltahub.formats.peft_places import Places
from deltahub.hub.locating import locate

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_VLLM_RANK: Final = 16  # --max-lora-rank of vLLM, if it is told nothing

# How classes of transformers end, and what PEFT calls their task.
_TASKS: Final = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
_NEEDS_NO_HEAD: Final = {
    "SEQ_2_SEQ_LM",
    "CAUSAL_LM",
}  # for the others PEFT makes a copy of the head that it expects in the file


def export_peft(
    path: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    backbone: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a delta as an adapter that `peft.PeftModel.from_pretrained`, vLLM and LoRAX load.

    Args:
        path: a folder, or a reference to pull.
        to: the folder to write, which is new or holds an adapter.
        backbone: the folder of its backbone, or a model id in Hugging Face's cache. Only some deltas need it: those on parts of
            fused layers, whose rows it tells, and LayerNorm tuning, to whose weights the delta's are added.
        cache_dir: another place for what is pulled.

    Returns:
        The folder written.

    Raises:
        ConfigError: PEFT has no form for this delta, or the backbone is needed; the message says which.
        CheckpointError: the delta or the backbone cannot be read, or `to` holds something else.
        FingerprintMismatch: the backbone is another one.
        StorageError: the disk is full or not writable; nothing was half written.
    """
    folder = Path(to).expanduser()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        msg = f"{folder} holds something else than an adapter of PEFT. Choose a new folder."
        raise CheckpointError(msg)
    saved = read_cached(lambda: locate(path, cache_dir), _read)
    places = Places.of(saved, None if backbone is None else os.fspath(backbone))
    found = exported(saved, places)
    config = {**_common(saved.document, found, places), **found.options}
    with storage_errors("Writing the adapter", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with staging(folder) as stage:
            tensors = {name: tensor.contiguous() for name, tensor in sorted(found.tensors.items())}
            write_synced(stage / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
            write_synced(stage / CARD, _card(config, saved.parent["digest"]).encode())
            write_synced(stage / CONFIG, f"{json.dumps(config, indent=2, sort_keys=True)}\n".encode())
            move_all(stage, folder, [WEIGHTS, CARD, CONFIG])
        sync_folders([folder, folder.parent])
    return folder


def _read(folder: Path) -> Checkpoint:
    with checked(folder) as (place, config_sha256):
        return replace(checkpoint.read(place, config_sha256=config_sha256), folder=folder)


def _card(config: Mapping[str, Any], digest: str) -> str:
    """A card that says which backbone the adapter is for and which delta it is of: no key of the config may."""
    base = config["base_model_name_or_path"]
    front = f"base_model: {json.dumps(base)}\nlibrary_name: peft\n" if base else "library_name: peft\n"
    return f"---\n{front}---\n\nWritten by deltahub from the delta {digest}.\n"


def _common(document: Mapping[str, Any], found: Exported, places: Places) -> dict[str, Any]:
    """What every adapter's config says."""
    backbone_class = str(document.get("backbone_class", ""))
    task = next((task for ending, task in _TASKS.items() if backbone_class.endswith(ending)), None)
    if found.needs_task and task is None:
        msg = (
            f"PEFT knows no prompts for a {backbone_class or 'backbone of unknown class'}: expected a class of transformers that "
            f"ends in one of {', '.join(_TASKS)}."
        )
        raise ConfigError(msg)
    if task not in _NEEDS_NO_HEAD and not found.needs_task:
        task = None
    return {
        "auto_mapping": None if task else {"base_model_class": backbone_class, "parent_library": "transformers"},
        "base_model_name_or_path": places.named or _name(document),
        "inference_mode": True,
        "modules_to_save": found.modules_to_save or None,
        "peft_type": found.peft_type,
        "revision": document.get("backbone_revision"),
        "task_type": task,
    }


def _name(document: Mapping[str, Any]) -> str:
    given = document.get("metadata", {}).get("backbone_model")
    return str(given or document.get("backbone_checkpoint_name") or "")


def serving_notes(folder: Path) -> list[str]:
    """What a server makes of an adapter other than PEFT does, in sentences; empty if vLLM and LoRAX serve it as it is.

    vLLM refuses what it does not know. LoRAX passes it over without a word, so that its answers are others.

    Args:
        folder: of the adapter.
    """
    config = json.loads((folder / CONFIG).read_bytes())
    if config["peft_type"] != "LORA":
        return [f"vLLM and LoRAX serve LoRA only; this is {config['peft_type']}, for PEFT itself."]
    beyond = []
    if config["modules_to_save"]:
        beyond.append(f"replaces {', '.join(config['modules_to_save'])}")
    if config["bias"] != "none":
        beyond.append("replaces biases")
    if config["use_dora"]:
        beyond.append("is DoRA")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        beyond.append("has ranks or scales of its own in some layers")
    if beyond:
        return [f"vLLM refuses it, and LoRAX would leave out a part: it also {' and '.join(beyond)}."]
    notes = []
    if config["r"] > _VLLM_RANK:
        notes.append(f"Start vLLM with --max-lora-rank {_next_rank(config['r'])}: its rank is {config['r']}.")
    if any("." in name for name in config["target_modules"]):
        notes.append("Not for LoRAX, which leaves out a LoRA on some layers of a kind; this one is not on all of them.")
    return notes


def _next_rank(rank: int) -> int:
    """The smallest value that vLLM's option takes and that is enough."""
    return next((size for size in (32, 64, 128, 256, 320, 512) if size >= rank), rank)
