"""Loading of deltas: find, check, plan, and only then change the backbone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.cache.cache import checked, pulled_reference, read_cached
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.checkpoint import Checkpoint
from deltahub.checkpoint.config import DeltaConfig
from deltahub.engine.building import build, check_dtype, complete_config
from deltahub.engine.filling import fill, refuse_larger, replaced_names
from deltahub.engine.fingerprint import missing_from_version_1
from deltahub.engine.guards import check_name, refuse_closed
from deltahub.engine.insertion import Insertion
from deltahub.engine.layers import embed_scale
from deltahub.engine.ledger import Entry, free_name, ledgers_in
from deltahub.engine.modules import modules_by_name, own_parameters
from deltahub.engine.overrides import overrides
from deltahub.engine.recorded import check_mode, require_recorded_backbone
from deltahub.engine.site import is_delta_name
from deltahub.engine.trainable import remember
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files.atomic import read_limited
from deltahub.formats.adapters import reading as adapters_reading
from deltahub.formats.diffusers import reading as diffusers_reading
from deltahub.formats.gguf import reading as gguf_reading
from deltahub.formats.opendelta import reading as opendelta
from deltahub.formats.peft import reading as peft_reading
from deltahub.handle.attachment import handle_of
from deltahub.handle.probe import Probe, refuse_others
from deltahub.handle.switching import add
from deltahub.hub.locating import locate
from deltahub.log import LOGGER


def read_any(
    folder: Path,
    backbone: nn.Module,
    *,
    allow_pickle: bool,
    with_backbone: bool = True,
    config_sha256: str | None = None,
) -> Checkpoint:
    """Read a delta saved by DeltaHub or by another library.

    Args:
        backbone: the model of the delta; files of other libraries cannot be read without it.
        allow_pickle: whether a pickle may be opened, with `weights_only=True`.
        with_backbone: whether to read the backbone's record too.
        config_sha256: the expected sha256 of the config of a delta saved by DeltaHub; excludes other formats.

    Raises:
        CheckpointError: the folder holds no such delta, or is damaged.
        ConfigError: the folder holds an adapter of an unsupported kind.
        PickleRefusedError: the folder holds a pickle, and `allow_pickle` is false.
    """
    if config_sha256 is None and not checkpoint.is_checkpoint(folder):
        foreign = _read_foreign(folder, backbone, allow_pickle=allow_pickle)
        if foreign:
            return replace(foreign, fingerprint=_recorded(folder)) if with_backbone else foreign
    refuse_larger(folder / checkpoint.WEIGHTS, backbone)
    return checkpoint.read(folder, with_backbone=with_backbone, config_sha256=config_sha256)


def _read_foreign(folder: Path, backbone: nn.Module, *, allow_pickle: bool) -> Checkpoint | None:
    """Read a delta of another library; return None if the folder holds none that is known."""
    if opendelta.is_checkpoint(folder):
        return opendelta.read(folder, backbone, allow_pickle=allow_pickle)
    if peft_reading.is_adapter(folder):
        return peft_reading.read(folder, backbone, allow_pickle=allow_pickle)
    if adapters_reading.is_adapter(folder):
        return adapters_reading.read(folder, backbone, allow_pickle=allow_pickle)
    if diffusers_reading.is_lora(folder):
        return diffusers_reading.read(folder, backbone)
    if gguf_reading.is_adapter(folder):
        return gguf_reading.read(folder, backbone)
    return None


def _recorded(folder: Path) -> Fingerprint | None:
    """Return the record of the backbone that `record_backbone` wrote beside a delta of another library."""
    path = folder / checkpoint.BACKBONE
    return Fingerprint.from_bytes(read_limited(path, checkpoint.LARGEST)) if path.is_file() else None


def _read(
    folder: Path, backbone: nn.Module, *, allow_pickle: bool, with_backbone: bool
) -> tuple[Checkpoint, Mapping[str, str]]:
    """Read a folder's delta and its entry in the `parents` of a delta trained on from it."""
    with checked(folder) as (place, config_sha256):
        saved = read_any(
            place, backbone, allow_pickle=allow_pickle, with_backbone=with_backbone, config_sha256=config_sha256
        )
        name = pulled_reference(folder)
    saved = replace(saved, folder=folder)
    return saved, {**saved.parent, "name": name} if name else saved.parent


@dataclass(frozen=True, eq=False)
class Loaded:
    """A saved delta that has been read and checked for a backbone, and is not on it yet.

    Attributes:
        kind: the delta model's class.
        config: its complete config.
        insertions: by module name, with its values on the backbone's devices.
        replaced: its values of tensors of the backbone.
        parent: its entry in the `parents` of a delta trained on from it.
        probe: its probe, if that is to be checked.
    """

    kind: Any
    config: DeltaConfig
    insertions: dict[str, Insertion]
    replaced: Mapping[str, Tensor]
    parent: Mapping[str, str]
    probe: Probe | None


def read_for(
    class_for: Callable[[str, str | None], Any],
    path: str | os.PathLike[str],
    backbone: nn.Module,
    *,
    config: DeltaConfig | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    check_hash: bool | str = True,
    allow_pickle: bool = False,
    dtype: torch.dtype | None = None,
    check_probe: bool = False,
    options: Mapping[str, Any] = {},
) -> Loaded:
    """Read a saved delta and check it for a backbone, which is not changed: see `DeltaBase.from_finetuned`.

    Args:
        class_for: returns the delta model's class for a delta type and the package that the type comes from.
        options: config options that replace the saved ones.
    """
    _check_arguments((), backbone, check_hash, config)
    saved, parent = read_cached(
        lambda: locate(path, cache_dir, force=force_download, local_files_only=local_files_only),
        lambda folder: _read(folder, backbone, allow_pickle=allow_pickle, with_backbone=check_hash is not False),
    )
    probe = _probe_of(saved, backbone) if check_probe else None
    cls = class_for(saved.document["delta_type"], saved.document.get("delta_package"))
    config = cls.config_class.from_dict(config.to_dict() if config else saved.document, **options)
    # Copy given tensors, so that the delta's own do not change with the caller's.
    tensors = saved.tensors if tensors is None else {key: t.detach().clone() for key, t in tensors.items()}

    if dtype is not None:
        tensors = {
            key: t.to(dtype) if is_delta_name(key) and t.is_floating_point() else t for key, t in tensors.items()
        }
    _check_backbone(saved, backbone, brought_names(saved), check_hash)
    config = complete_config(cls, config, backbone)
    insertions = build(cls, backbone, config, empty=True)
    _check_release(saved, insertions, backbone)
    return Loaded(cls, config, insertions, fill(insertions, backbone, tensors), parent, probe)


def load(
    class_for: Callable[[str, str | None], Any],
    path: str | os.PathLike[str],
    backbone: nn.Module,
    *surplus: Any,
    config: DeltaConfig | None,
    check_hash: bool | str,
    name: str | None,
    dtype: torch.dtype | None,
    **reading: Any,
) -> Any:
    """Put a saved delta on a backbone: see `DeltaBase.from_finetuned`.

    Args:
        class_for: returns the delta model's class for a delta type and the package that the type comes from.
        surplus: further positional arguments of the caller, which are refused.
        reading: other arguments of `read_for`.
    """
    _check_arguments(surplus, backbone, check_hash, config)
    modules = modules_by_name(backbone)
    refuse_closed(modules)
    if name is not None:
        check_name(modules, name)
    if dtype is not None:
        check_dtype(dtype)

    saved = read_for(class_for, path, backbone, config=config, check_hash=check_hash, dtype=dtype, **reading)
    kind = saved.kind
    entry_name = name or free_name(modules, kind.delta_type)
    entry = Entry(entry_name, kind, saved.config, saved.insertions, parents=(saved.parent,))
    ledger = add(backbone, entry)
    ledger.replace(backbone, entry, dict(saved.replaced))
    remember(modules.values(), ledger.serial)
    _set_trainable(modules, entry)
    count = sum(len(other.entries) for _, _, other in ledgers_in(modules))
    if count == 1 and any(module.training for module in modules.values()):  # other deltas on it may be in training
        backbone.eval()
    delta = handle_of(backbone, entry)
    if saved.probe:
        _check_probe(saved.probe, delta)
    return delta


def _check_arguments(surplus: tuple[Any, ...], backbone: Any, check_hash: Any, config: Any) -> None:
    """Raise ConfigError for an argument of a wrong type."""
    if surplus:
        msg = f"from_finetuned takes no further positional arguments, got {surplus!r}. Pass them by name."
        raise ConfigError(msg)
    if not isinstance(backbone, nn.Module):
        actual_type = type(backbone).__name__
        msg = f"backbone_model is of type {actual_type}; expected a model of PyTorch. Load it first, e.g. with from_pretrained."
        raise ConfigError(msg)
    check_mode(check_hash)
    if config is not None and not isinstance(config, DeltaConfig):
        actual_type = type(config).__name__
        msg = f"delta_config is of type {actual_type}; expected a config of a delta. Make one with AutoDeltaConfig.from_dict."
        raise ConfigError(msg)


def _set_trainable(modules: Mapping[str, nn.Module], entry: Entry) -> None:
    """Freeze the backbone around a loaded delta; where another delta's `freeze_module` has chosen what trains, that stays chosen."""
    others = [
        ledger
        for _, _, ledger in ledgers_in(modules)
        if any(e.attached and e is not entry for e in ledger.entries.values())
    ]
    if any(ledger.selected for ledger in others):
        # A head of which another delta has a value too goes on training: it is that one's again when this one is off.
        own = entry.replaced.keys() - {name for name, record in overrides(modules) if len(record.values) > 1}
        trained = {name for name, p in own_parameters(modules) if p.requires_grad and name not in own}
        for insertion in entry.insertions.values():
            insertion.requires_grad_(False)
        LOGGER.info(
            "%r is not trained until a freeze_module names it: another delta's has chosen what trains.", entry.name
        )
    else:
        trained = {name for name, record in overrides(modules) if record.values}
    for name, parameter in own_parameters(modules):
        parameter.requires_grad_(name in trained)  # untrained tensors remain the backbone's


def _probe_of(saved: Checkpoint, backbone: nn.Module) -> Probe:
    """Return the probe of a delta, which can be checked only on a backbone where no other delta acts.

    Raises:
        CheckpointError: it has none, or a malformed one.
        ConfigError: another delta is attached.
    """
    if saved.probe is None:
        msg = f"{saved.folder} holds no probe to check. Save the delta with save_finetuned(..., probe=batch), or leave out check_probe."
        raise CheckpointError(msg)
    refuse_others(backbone)
    return Probe.from_bytes(saved.probe, str(saved.folder / checkpoint.PROBE))


def _check_probe(probe: Probe, delta: Any) -> None:
    """Check a probe; a delta that fails is removed again."""
    try:
        probe.check(delta.backbone_model)
    except BaseException:
        delta.remove()
        raise


def _check_release(saved: Checkpoint, modules: Iterable[str], backbone: nn.Module) -> None:
    """Refuse a LoRA of a release that left out the scale of an embedding: its tensors have another meaning now."""
    if saved.document["delta_type"] != "lora" or not saved.document.get("deltahub_version", "").startswith("0.1."):
        return
    for name in modules:
        scale = embed_scale(backbone.get_submodule(name))
        if scale is not None and float(scale) != 1:
            msg = (
                f"{saved.folder} was saved by deltahub {saved.document['deltahub_version']}, which did not multiply the "
                f"LoRA on {name} by that embedding's scale of {float(scale):.6g}, as later releases and PEFT do. Train "
                "it again, or load it with the release that saved it."
            )
            raise CheckpointError(msg)


def brought_names(saved: Checkpoint) -> tuple[str, ...]:
    """Return the names of the backbone tensors that a delta has values of its own for; they do not identify its backbone."""
    return (*replaced_names(saved.tensors), *saved.unchanged)


def _check_backbone(saved: Checkpoint, backbone: nn.Module, replaced: tuple[str, ...], check_hash: bool | str) -> None:
    if check_hash is False:
        LOGGER.warning(
            "The backbone was not checked (check_hash=False): the delta may have been trained on another one."
        )
        return
    if saved.fingerprint is None:
        if saved.document.get("backbone_hash") is None and checkpoint.is_checkpoint(saved.folder):
            msg = (
                f"{saved.folder} does not say which backbone it belongs to. Pass check_hash=False to attach it anyway."
            )
            raise CheckpointError(msg)
        LOGGER.warning(
            "%s was saved without a list of its backbone's tensors, so only their shapes are checked.", saved.folder
        )
        return
    version = saved.fingerprint.version
    if version == 1 and (names := missing_from_version_1(backbone, replaced)):
        LOGGER.warning(
            "%s was saved by an earlier release, whose record of the backbone does not cover buffers of integers: "
            "%s (%d in all) could not be compared. Save the delta again to cover them.",
            *(saved.folder, names[0], len(names)),
        )
    require_recorded_backbone(saved.fingerprint, backbone, replaced, check_hash)
