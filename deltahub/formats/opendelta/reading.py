"""Reader for OpenDelta's checkpoints: `config.json` and the pickle `pytorch_model.bin`.

The names of the tensors contain the module of each delta (`...query.lora.lora_A`), so they decide, not the config's addresses: some
releases wrote addresses that later ones no longer understand. The format is described in docs/migrating-from-opendelta.md.

OpenDelta's BitFit trains the backbone's biases in place, and a checkpoint holds every trained value of every delta on the backbone.
So the checkpoints of BitFit and of a LoRA beside it both hold the biases. Here, BitFit adds to a bias and the others replace it, so that
the two together would train it twice. Deltas that both replace it each keep their own value, and act right without the other.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import CONVERTED, Checkpoint
from deltahub.checkpoint.config import SCHEMA, check_document
from deltahub.engine.attention_layers import attentions
from deltahub.engine.filling import refuse_larger
from deltahub.engine.fingerprint import backbone_values
from deltahub.engine.ledger import Entry, entries_of, value_of
from deltahub.engine.modules import own_modules, plain_name
from deltahub.engine.site import CHILD, delta_key, is_delta_name
from deltahub.engine.structure.targets import find_targets
from deltahub.errors import AddressError, CheckpointError, ConfigError
from deltahub.files.atomic import sha256_file
from deltahub.files.documents import load_schema
from deltahub.formats.files import has_key, read_config
from deltahub.formats.opendelta.tensor_names import DELTA_TYPES, SILENT_MODULES, belongs_to_a_delta, choose_tensors
from deltahub.formats.torch_file import read_pickle
from deltahub.log import LOGGER
from deltahub.reference import Digest
from deltahub.text.suggestions import suggest


def starting_value(bias: Tensor, saved: Tensor) -> Tensor:
    """Return a backbone's bias in float32 or wider, for subtraction from a saved one: in half precision the difference would be inexact."""
    return bias.detach().to(saved.device, torch.promote_types(bias.dtype, torch.float32))


class SharedBiases:
    """The trained biases of the deltas already on a backbone, of which one would be added to the other's.

    Args:
        delta_type: the type of the delta being read: for BitFit, deltas that replace biases count, for the others BitFit.
        values: the backbone's own values by name.
    """

    def __init__(self, backbone: nn.Module, delta_type: str, values: Mapping[str, Tensor]) -> None:
        self.backbone, self.values = backbone, values
        adds = delta_type == "bitfit"
        self.entries = [e for e in entries_of(backbone) if (e.config.delta_type == "bitfit") is not adds]
        self.owners: dict[str, str] = {}
        self.detached: dict[str, str] = {}

    def holds(self, name: str, saved: Tensor, *, alone: bool) -> bool:
        """Return whether a delta that acts on the backbone already has the saved value of a tensor, bit for bit.

        Args:
            alone: whether the checkpoint holds a bias without the weight of its layer, as BitFit trains it.

        Raises:
            CheckpointError: a delta has trained the same bias to another value, so both would be added up.
        """
        for entry in self.entries:
            is_same = self._has_value(entry, name, saved)
            if is_same is None:
                continue
            if not entry.attached:  # it brings nothing
                self.detached[name] = entry.name
                continue
            if is_same:
                self.owners[name] = entry.name
                return True
            if alone:
                msg = (
                    f"{name} is in the checkpoint with another value than in the delta {entry.name!r} on the backbone, and the two "
                    "would be added up. Load checkpoints that were saved together, or remove() that delta first."
                )
                raise CheckpointError(msg)
        return False

    def report(self) -> None:
        """Log which tensors were left out, and which must not act together."""
        if self.owners:
            name, delta = next(iter(self.owners.items()))
            text = (
                "%d trained biases are left out: %r on the backbone has them already (%s, ...) and brings them while it is attached. "
                "detach() it before loading to use this delta without it."
            )
            LOGGER.warning(text, len(self.owners), delta, name)
        if self.detached:
            name, delta = next(iter(self.detached.items()))
            text = (
                "%d biases are also trained by %r, which is detached (%s, ...). Attached together, the two would add up: "
                "to use both at once, load this delta while the other is attached."
            )
            LOGGER.warning(text, len(self.detached), delta, name)

    def _has_value(self, entry: Entry, name: str, saved: Tensor) -> bool | None:
        """Return whether a delta's value of a bias is the saved one; None if the delta has no value."""
        layer, _, leaf = name.rpartition(".")
        if name in self.values and self.values[name].shape != saved.shape:
            return None  # filling the delta refuses it
        if name in self.values and torch.equal(self.values[name].detach().to(saved), saved):
            return None  # not trained
        if entry.config.delta_type == "bitfit" and leaf == "bias" and layer in entry.insertions and name in self.values:
            bias = entry.insertions[layer].state_dict()["bias"]
            return torch.equal((saved - starting_value(self.values[name], saved)).to(bias), bias)
        if leaf == "bias" and name in entry.replaced and f"{layer}.weight" not in entry.replaced:
            return torch.equal(value_of(self.backbone, entry, name).to(saved), saved)
        return None


CONFIG: Final = "config.json"
WEIGHTS: Final = "pytorch_model.bin"
_TENSORS_EVERYWHERE: Final = ("lora", "adapter", "low_rank_adapter")  # each module has its own tensors


def is_checkpoint(folder: Path) -> bool:
    """Return whether `folder` holds a delta saved by OpenDelta."""
    return (folder / WEIGHTS).is_file() and has_key(folder / CONFIG, "delta_type")


def read(folder: Path, backbone: nn.Module, *, allow_pickle: bool) -> Checkpoint:
    """Read an OpenDelta checkpoint.

    Args:
        backbone: the model of the delta, used to tell trained backbone tensors from those of the delta.
        allow_pickle: whether `pytorch_model.bin` may be opened, with `weights_only=True`.

    Raises:
        PickleRefusedError: `allow_pickle` is false.
        CheckpointError: the checkpoint does not fit the backbone.
        ConfigError: this version does not support the delta type.
    """
    config = read_config(folder / CONFIG, "opendelta_config.v1")
    delta_type = config["delta_type"]
    if delta_type not in DELTA_TYPES:
        suggestion = suggest(delta_type, DELTA_TYPES)
        msg = f"{folder} is an OpenDelta checkpoint of type {delta_type!r}, which this version does not load: {suggestion}"
        raise ConfigError(msg)
    refuse_larger(folder / WEIGHTS, backbone)
    saved = read_pickle(folder / WEIGHTS, allowed=allow_pickle)
    tensors = dict(_translate(saved, config, backbone))
    _check_places(tensors, config, backbone, folder)
    document = _document(config, _addresses(tensors, config) | _habits(config, backbone))
    parent = {"relation": CONVERTED, "digest": Digest.of_hex(sha256_file(folder / WEIGHTS)[0]), "format": "opendelta"}
    return Checkpoint(folder, document, None, tensors, parent)


def _document(config: Mapping[str, Any], addresses: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the config to DeltaHub's form."""
    method_fields = load_schema(SCHEMA)["definitions"]["types"][config["delta_type"]]["properties"]
    kept_fields = {
        *method_fields,
        "unfrozen_modules",
        "backbone_class",
        "backbone_checkpoint_name",
        "transformers_version",
        "delta_type",
    }
    document = {
        **{key: value for key, value in config.items() if key in kept_fields and value is not None},
        "format_version": 1,
        "exclude_modules": [],
        **addresses,
    }
    check_document(document)
    return document


def _addresses(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the modules of the delta, by the names of its tensors (alike in every release) where those name every module."""
    if config["delta_type"] == "soft_prompt":
        return {}
    if config["delta_type"] in SILENT_MODULES:
        common = bool(config.get("common_structure"))
        return {"modified_modules": config.get("modified_modules"), "common_structure": common}
    modules = [name.partition(f".{CHILD}.")[0] for name in tensors if is_delta_name(name)]
    return {"modified_modules": list(dict.fromkeys(modules)), "common_structure": False}


def _habits(config: Mapping[str, Any], backbone: nn.Module) -> dict[str, Any]:
    """Return options for behaviour of transformers in OpenDelta's days that later releases changed."""
    classes = {cls.__name__ for _, module in own_modules(backbone) for cls in type(module).__mro__}
    return {"bare_embeddings": True} if config["delta_type"] == "soft_prompt" and "DistilBertModel" in classes else {}


def _check_places(tensors: Mapping[str, Tensor], config: Mapping[str, Any], backbone: nn.Module, folder: Path) -> None:
    modules = {f".{name}".partition(f".{CHILD}.")[0].removeprefix(".") for name in tensors if is_delta_name(name)}
    if not modules:
        msg = f"{folder / WEIGHTS} holds no tensor of a delta, though {CONFIG} says there is one. Save it again."
        raise CheckpointError(msg)
    if missing := sorted(modules - {name for name, _ in own_modules(backbone)}):
        msg = f"The delta sits on {missing[0]}, which this {type(backbone).__name__} does not have. Load its own backbone."
        raise CheckpointError(msg)
    if modules < (expected := _expected_modules(config, backbone)):
        msg = (
            f"{folder / WEIGHTS} holds no tensors for {min(expected - modules)} ({len(expected - modules)} of {len(expected)} modules), "
            f"on which {CONFIG} puts the delta. Copy the checkpoint again from where it was saved."
        )
        raise CheckpointError(msg)


def _expected_modules(config: Mapping[str, Any], backbone: nn.Module) -> set[str]:
    """Return the modules that the config puts the delta on; none if its addresses do not determine them."""
    if config["delta_type"] not in _TENSORS_EVERYWHERE or not config.get("modified_modules"):
        return set()
    if not str(config.get("opendelta_version", "")).startswith("0.3."):  # before, names matched other modules
        return set()
    try:
        common, exclude = bool(config.get("common_structure")), config.get("exclude_modules") or ()
        return {target.name for target in find_targets(backbone, config["modified_modules"], exclude, common)}
    except AddressError:
        return set()


def _translate(
    saved: Mapping[str, Tensor], config: Mapping[str, Any], backbone: nn.Module
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors under DeltaHub's names, without those of other deltas."""
    delta_type = config["delta_type"]
    carried = Counter(m for e in entries_of(backbone) if e.config.delta_type == delta_type for m in e.insertions)
    places = choose_tensors(saved, config, carried)
    values = dict(backbone_values(backbone))
    aliases = {plain_name(name) for name, _ in backbone.named_parameters(remove_duplicate=False)} - values.keys()
    shared = SharedBiases(backbone, delta_type, values)
    offsets: dict[str, Tensor] = {}
    other_names: list[str] = []
    for name, tensor in saved.items():
        if place := places.get(name):
            target = delta_key(_module(place.module, delta_type, backbone), place.leaf)
            if delta_type == "bitfit":
                offsets[target] = _sum(offsets.get(target), tensor, name)
            else:
                yield target, tensor
        elif delta_type == "bitfit" and _is_trained_bias(name, saved):
            target = delta_key(name.removesuffix(".bias"), "bias")
            offset = _sum(-starting_value(values[name], tensor), tensor, name) if name in values else tensor
            if shared.holds(name, tensor, alone=True):
                offset = torch.zeros_like(offset)
            offsets[target] = _sum(offsets.get(target), offset, name)
        elif name in values:
            if not shared.holds(name, tensor, alone=_is_trained_bias(name, saved)):
                yield name, tensor
        elif name in aliases or not tensor.is_floating_point():
            continue  # a second name of a tied tensor, or a constant such as position_ids
        elif belongs_to_a_delta(name):
            other_names.append(name)
        else:
            msg = f"{name} is neither part of a {delta_type} nor of this {type(backbone).__name__}. Load its own backbone."
            raise CheckpointError(msg)
    yield from offsets.items()
    shared.report()
    if other_names:
        description = "of other deltas that were on the backbone, to be loaded from their own checkpoints"
        LOGGER.warning("%d tensors are left out: they are %s (%s, ...).", len(other_names), description, other_names[0])


def _sum(offset: Tensor | None, more: Tensor, name: str) -> Tensor:
    """Add two values that a checkpoint holds for one bias, without broadcasting."""
    if not more.is_floating_point():
        msg = f"{name} is {more.dtype}, and a bias is a float. Save the delta again."
        raise CheckpointError(msg)
    if offset is None:
        return more
    if offset.shape != more.shape:
        msg = f"{name} is {list(offset.shape)} in one place and {list(more.shape)} in another. Load its own backbone."
        raise CheckpointError(msg)
    return offset + more


def _module(name: str, delta_type: str, backbone: nn.Module) -> str:
    """Return the module to put the delta on: for a prefix, the attention itself, not a module around it."""
    if delta_type != "prefix":
        return name
    return next((inner for inner in attentions(backbone) if f"{inner}.".startswith(f"{name}.")), name)


def _is_trained_bias(name: str, saved: Mapping[str, Tensor]) -> bool:
    """Return whether a saved bias was trained by BitFit, and not with its weight as part of an unfrozen module."""
    return name.endswith(".bias") and f"{name.removesuffix('bias')}weight" not in saved


def opendelta_hash(model: nn.Module, text: str | None = None) -> str:
    """Compute OpenDelta's `backbone_hash`: md5 of the model's text without blanks, then of its parameters' bytes in order.

    The hash includes the attached deltas, and the text depends on the releases of torch and transformers, so a hash from
    elsewhere can be checked only with its own text.

    Args:
        model: the backbone with its delta.
        text: `str(model)` where the hash was computed; by default the text of `model` here.
    """
    plain = re.sub(r"[\n \t]", "", str(model) if text is None else text)
    digest = hashlib.md5(plain.encode(), usedforsecurity=False)
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
