"""Reader for PEFT's adapters, which become equivalent deltas: `adapter_types` lists the types.

Every field of the config must be understood (`fields`), and every tensor that it announces must be present and fit a module: an
unmatched tensor is an error, so that none is silently ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import CONVERTED, Checkpoint
from deltahub.checkpoint.config import check_document
from deltahub.engine.bypassed import is_bypassed
from deltahub.engine.filling import refuse_larger
from deltahub.errors import CheckpointError, ConfigError, DeltaHubError
from deltahub.files.atomic import sha256_file
from deltahub.formats.files import has_key, read_config, read_safetensors
from deltahub.formats.peft.adapter_types import TYPES, AdapterType
from deltahub.formats.peft.export import CONFIG, WEIGHTS
from deltahub.formats.peft.fields import check_fields
from deltahub.formats.peft.parameter_reading import targeted_parameters
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter
from deltahub.formats.peft.saved_modules import trainable, trained
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
    kind, names = TYPES[config["peft_type"]], Names.of(backbone)
    weights, saved = _tensors(folder, backbone, allow_pickle=allow_pickle)
    _compare_names(config, backbone)
    found = sort_tensors(saved, kind.leaves, names)
    if found.outside:
        text = "The adapter is of a model with a head that this %s has not. Left out: %s"
        LOGGER.warning(text, type(backbone).__name__, ", ".join(sorted(found.outside)))
    leaves = {place: _as_trained(place, tensor, kind, weights) for place, tensor in found.leaves.items()}
    rows = {module: _as_trained((module, ""), tensor, kind, weights) for module, tensor in found.rows.items()}
    experts = {
        place: {leaf: _as_trained(("", leaf), tensor, kind, weights) for leaf, tensor in own.items()}
        for place, own in found.experts.items()
    }
    _check_places(leaves, {**rows, **experts}, config, names, weights)
    replaced, alone = trained(found.own, config, names)
    adapter = SavedAdapter(config, leaves, names, alone, rows, experts)
    if experts and config["peft_type"] != "LORA":
        msg = f"The adapter is a {config['peft_type']} on experts of a mixture (MoE), where DeltaHub knows LoRA only. Load it with PEFT."
        raise ConfigError(msg)
    _refuse_without_effect(adapter, backbone)
    converted = _converted(kind, adapter, weights)
    if alone and converted.options["delta_type"] != "lora":
        module = min(alone)
        msg = (
            f"The adapter replaces {module} alone, which shares its weight with another layer of this {type(backbone).__name__}; only beside a "
            "LoRA can DeltaHub do that. Load it with PEFT."
        )
        raise ConfigError(msg)
    document = {
        "format_version": 1,
        "backbone_class": type(backbone).__name__,
        "common_structure": False,
        "exclude_modules": [],
        "unfrozen_modules": ["deltas", *trainable(found.own, replaced, config, names)],
        **converted.options,
    }
    check_document(document)
    parent = {"relation": CONVERTED, "digest": Digest.of_hex(sha256_file(weights)[0]), "format": "peft"}
    own = {names.tensors[name] for name in found.own}
    unchanged = sorted(name for name in own - replaced.keys() if len(names.shared_names(name)) == 1)
    brought = {**replaced, **converted.replaced}
    return Checkpoint(folder, document, None, {**converted.tensors, **brought}, parent, tuple(unchanged))


def _converted(kind: AdapterType, adapter: SavedAdapter, weights: Path) -> Converted:
    """Convert an adapter.

    Raises:
        ConfigError: it has something without an equivalent in a delta.
        CheckpointError: its tensors do not have the shapes of its method.
    """
    try:
        return kind.read(adapter)
    except DeltaHubError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:  # of an operation on tensors of other shapes
        method = adapter.config["peft_type"]
        msg = f"The tensors in {weights} are not those of a {method} on this backbone ({error}). Fetch it again, or load its own backbone."
        raise CheckpointError(msg) from error


def _refuse_without_effect(adapter: SavedAdapter, backbone: nn.Module) -> None:
    """Refuse an adapter on layers that are never called: it has no effect in PEFT, and a LoRA here would act on their weights.

    Raises:
        ConfigError: there is such a layer.
    """
    linear = [
        name for name in adapter.modules if type(adapter.names.modules.get(name)) is nn.Linear
    ]  # not attention.out_proj
    real = [adapter.names.real[name] for name in linear]
    if module := next((name for name in real if is_bypassed(backbone, name)), None):
        msg = (
            f"The adapter is also on {module}, which is never called: its parent reads its weight itself, so in PEFT it has no effect there. "
            f"Leave {module.rpartition('.')[2]} out of target_modules, and its tensors out of the file."
        )
        raise ConfigError(msg)


def _as_trained(place: tuple[str, str], tensor: Tensor, kind: AdapterType, weights: Path) -> Tensor:
    """Cast a tensor of the adapter as PEFT does on loading: half precision is computed and trained in float32.

    Raises:
        CheckpointError: it holds numbers of another kind than the method's.
    """
    module, leaf = place
    if tensor.is_floating_point() == (leaf in kind.whole_numbers):
        expected = "whole numbers" if leaf in kind.whole_numbers else "floats"
        msg = f"{weights} holds {tensor.dtype} for {module or leaf}; expected {expected}. Fetch it again."
        raise CheckpointError(msg)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


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


def _check_places(
    leaves: Leaves, others: Mapping[Any, Any], config: Mapping[str, Any], names: Names, weights: Path
) -> None:
    """Refuse a file with tensors on other modules than its config names.

    Raises:
        CheckpointError: a module does not match; the message names the first.
    """
    modules = {module for module, _ in leaves if module}
    if not leaves and not others:
        msg = (
            f"{weights} holds no tensor of a {config['peft_type']}, though {CONFIG} says there is one. Fetch it again."
        )
        raise CheckpointError(msg)
    by_spelling = {names.body.there(module): module for module in names.modules}
    spelled = targeted(config, {name: names.modules[module] for name, module in by_spelling.items()}, names.backbone)
    expected = None if spelled is None else {by_spelling[name] for name in spelled}
    if expected is None or config["peft_type"] == "TRAINABLE_TOKENS":  # whose rows are checked one by one
        return
    tied = names.tied_with_embeddings() if config.get("ensure_weight_tying") else set()
    inner = {f"{module}.out_proj" for module in modules if isinstance(names.modules[module], nn.MultiheadAttention)}
    inner |= targeted_parameters(config, names).keys()
    extra = sorted(modules - expected - tied - inner)
    if experts := next((module for module in extra if ".experts" in f".{module}"), None):
        msg = f"The adapter acts on {experts}, which is of experts of a mixture (MoE), and {CONFIG} does not name them in target_parameters. Load it with PEFT."
        raise ConfigError(msg)
    if missing := sorted(expected - modules):
        msg = f"{weights} has no tensors for {missing[0]}, on which {CONFIG} puts the adapter. Fetch it again, or load its own backbone."
        raise CheckpointError(msg)
    if extra:
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
