"""A LoRA in the format of PEFT as an operand, read without its backbone.

The names of its modules are those in the file, and each module keeps its own rank and scale. Forms of LoRA whose update depends on
the backbone's weights are refused here; `deltahub.formats.peft` reads them on their backbone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from deltahub.algebra.operand import Operand
from deltahub.algebra.places import DOWN, MAGNITUDE, UP
from deltahub.cache.cache import published_manifest, pulled_reference
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.checkpoint import BACKBONE
from deltahub.checkpoint.manifest import DELTA_PART, TensorEntry
from deltahub.checkpoint.safetensors_header import require_usable, tensor_table
from deltahub.engine.site import delta_key
from deltahub.errors import CheckpointError, ConfigError, IntegrityError
from deltahub.files.atomic import read_limited, sha256_file
from deltahub.formats.files import has_key, read_config
from deltahub.formats.peft.export import CONFIG, WEIGHTS
from deltahub.formats.peft.fields import check_fields
from deltahub.formats.peft.lora_starts import REBUILT_STARTS
from deltahub.formats.peft.module_matching import by_pattern, is_in_layers, meant
from deltahub.formats.peft.tensor_names import plain
from deltahub.reference import Digest

_FACTOR: Final = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB]|magnitude_vector)(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
)
_LARGEST_RECORD: Final = 256 << 20  # bytes
_BESIDE_FACTORS: Final = ("lora_bias", "target_parameters", "trainable_token_indices")
_ENDS: Final = {"A": DOWN, "B": UP, "magnitude_vector": MAGNITUDE}


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter saved by PEFT and no delta saved by DeltaHub."""
    return has_key(folder / CONFIG, "peft_type") and not (folder / "delta_config.json").is_file()


def read(folder: Path, label: str) -> Operand:
    """Open the LoRA of PEFT in a folder.

    Args:
        label: the folder or reference as given, for messages.

    Raises:
        ConfigError: it is not a LoRA, or one whose update depends on the backbone.
        CheckpointError: it is damaged, or its weights are a pickle.
        IntegrityError: it was pulled, and a file differs from the published one.
    """
    _require_published(folder)
    config = read_config(folder / CONFIG, "peft_adapter.v1")
    _check_form(config, label)
    path = folder / WEIGHTS
    if not path.is_file():
        msg = f"{path} is missing, though {CONFIG} is there; a pickle is not opened here. Save the adapter as safetensors."
        raise CheckpointError(msg)
    entries = tensor_table(path)
    require_usable(entries, str(path))
    names = _names(entries, path)
    _check_targets(config, {name.partition(DELTA_PART)[0] for name in names if DELTA_PART in name}, path)
    table = {name: replace(entry, name=name) for name, entry in names.items()}
    stored = {name: entry.name for name, entry in names.items()}
    document = _document(config, table)
    name = pulled_reference(folder)
    parent = {
        "digest": str(Digest.of_hex(sha256_file(path)[0])),
        "config": str(Digest.of_hex(sha256_file(folder / CONFIG)[0])),
        "format": "peft",
        **({"name": name} if name else {}),
    }
    operand = Operand(label, document, _record(folder), parent, path, table, stored)
    if not operand.places:
        msg = f"{path} holds no tensor of a LoRA, though {CONFIG} says there is one. Fetch it again."
        raise CheckpointError(msg)
    return operand


def _record(folder: Path) -> Fingerprint | None:
    """Return the record of the backbone beside an adapter; None if nobody recorded it."""
    path = folder / BACKBONE
    return Fingerprint.from_bytes(read_limited(path, _LARGEST_RECORD)) if path.is_file() else None


def _require_published(folder: Path) -> None:
    manifest = published_manifest(folder)
    for entry in manifest.files if manifest else ():
        digest = sha256_file(folder / entry.path)[0]
        if digest != entry.sha256:
            expected, found = Digest.of_hex(entry.sha256), Digest.of_hex(digest)
            raise IntegrityError(str(folder / entry.path), expected, found, "Pull it again with --force.")


def _check_form(config: Mapping[str, Any], label: str) -> None:
    if config["peft_type"] != "LORA":
        msg = (
            f"{label} is an adapter of PEFT of type {config['peft_type']}, which is computed with only as a delta: load it with "
            "AutoDeltaModel.from_finetuned on its backbone, and save it with save_finetuned."
        )
        raise ConfigError(msg)
    check_fields(config)
    if other := next((key for key in _BESIDE_FACTORS if config.get(key)), None):
        msg = (
            f"{label} has {other}, which is computed with only as a delta: load it with AutoDeltaModel.from_finetuned on its backbone, and "
            "save it with save_finetuned."
        )
        raise ConfigError(msg)
    start = config.get("init_lora_weights")
    if start in REBUILT_STARTS:
        msg = (
            f"{label} was initialised with {start}, which changed the weights of its backbone, so its update depends on them. Load it with "
            "AutoDeltaModel.from_finetuned on its backbone, and save it with save_finetuned."
        )
        raise ConfigError(msg)


def _names(entries: tuple[TensorEntry, ...], path: Path) -> dict[str, TensorEntry]:
    """Return the tensors by the names that a delta gives them.

    Raises:
        CheckpointError: two tensors have the same place, or one has more or fewer than two dimensions.
    """
    names: dict[str, TensorEntry] = {}
    for entry in entries:
        if ".original_module." in entry.name:  # the value before training
            continue
        bare = plain(entry.name)
        while bare.startswith("module."):
            bare = bare.removeprefix("module.")
        bare = bare.removeprefix("base_model.model.")
        match = _FACTOR.fullmatch(bare)
        name = delta_key(match["module"], _ENDS[match["side"]][1:]) if match else _trained_name(bare)
        if match and match["side"] != "magnitude_vector" and len(entry.shape) != 2:
            msg = f"{path} holds {entry.name} {list(entry.shape)}: a LoRA of a convolution, which a delta has no form for."
            raise CheckpointError(f"{msg} Leave it out, or combine it in PEFT.")
        if name in names:
            msg = f"{path} holds two tensors for {name}, as {entry.name} and another: of several adapters? Save one of them alone."
            raise CheckpointError(msg)
        names[name] = entry
    return names


def _check_targets(config: Mapping[str, Any], modules: set[str], path: Path) -> None:
    """Refuse tensors on modules that the config does not name, which PEFT would leave out.

    Raises:
        CheckpointError: there is such a module; the message names the first.
    """
    targets = config.get("target_modules")
    if not targets or targets == "all-linear" or config.get("ensure_weight_tying"):
        return
    named = meant(targets, modules) - meant(config.get("exclude_modules") or (), modules)
    layers = config.get("layers_to_transform")
    if not isinstance(targets, str) and layers not in (None, []):
        named = {name for name in named if is_in_layers(name, layers, config.get("layers_pattern") or ())}
    if extra := sorted(modules - named):
        msg = f"{path} has tensors for {extra[0]}, which target_modules in {CONFIG} does not name; PEFT would leave them out."
        raise CheckpointError(f"{msg} Add it there if it is meant.")


def _trained_name(name: str) -> str:
    """Return the backbone's name of a tensor that PEFT trains as a whole."""
    module, mark, rest = name.replace(".base_layer.", ".").partition(".modules_to_save.")
    if mark and rest.count("."):  # the adapter's name comes first
        rest = rest.partition(".")[2]
    return f"{module}.{rest}" if mark else module


def _document(config: Mapping[str, Any], table: Mapping[str, TensorEntry]) -> dict[str, Any]:
    """Build the config of the same delta, with the rank and alpha of each module."""
    modules = sorted({name.partition(DELTA_PART)[0] for name in table if DELTA_PART in name})
    rank, alpha = int(config.get("r", 8)), float(config.get("lora_alpha", 8))
    ranks = {name: int(by_pattern(config.get("rank_pattern"), name, rank)) for name in modules}
    alphas = {name: float(by_pattern(config.get("alpha_pattern"), name, alpha)) for name in modules}
    trained = sorted(name for name in table if DELTA_PART not in name)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return {
        "delta_type": "lora",
        "lora_r": rank,
        "lora_alpha": alpha,
        "lora_dropout": float(config.get("lora_dropout") or 0.0),
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "modified_modules": modules,
        "exclude_modules": [],
        "common_structure": False,
        "unfrozen_modules": ["deltas", *trained],
        **({"backbone_checkpoint_name": base} if isinstance(base, str) and base else {}),
        **({"backbone_revision": revision} if isinstance(revision, str) and revision else {}),
    }
