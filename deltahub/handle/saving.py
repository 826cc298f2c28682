"""The state of a delta, and saving it with OpenDelta's method names.

The tensors can also be saved without the config: to one file, or as a dict in memory.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.checkpoint import checkpoint, metadata
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.checkpoint import tensors_in
from deltahub.checkpoint.effect import why_identity
from deltahub.checkpoint.safetensors_header import usable_bytes
from deltahub.engine.building import check_dtype
from deltahub.engine.filling import check_fit, not_finite, refuse_larger, refuse_without_values, replaced_names
from deltahub.engine.fingerprint import fingerprint
from deltahub.engine.guards import refuse_adapted, refuse_merged, refuse_sharded_codes
from deltahub.engine.ledger import Entry, ledger_holding, value_of, warn_of_uncalled
from deltahub.engine.modules import modules_by_name, own_parameters
from deltahub.engine.overrides import overrides
from deltahub.engine.quantised.record import with_samples
from deltahub.engine.sharding import assign, done_once, full_tensor, is_sharded, live_value, reshard
from deltahub.engine.site import delta_key, is_delta_name
from deltahub.errors import CheckpointError
from deltahub.files.atomic import regular, staging, storage_errors, sync_file, sync_folders
from deltahub.handle.attachment import Attachment
from deltahub.handle.probe import Probe
from deltahub.handle.types import package_for
from deltahub.log import LOGGER
from deltahub.version import VERSION

Saver = Callable[[Mapping[str, Tensor], Path], None]


def save_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as a safetensors file; the default `save_function`."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _read(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; the default `load_func`."""
    with regular(path) as file:
        return tensors_in(usable_bytes(file, str(path))[0], str(path))


class SaveLoadMixin(Attachment):
    """A delta on a backbone, saved and restored. The name is OpenDelta's."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors of the delta: its own, and those of the backbone that it trains or replaced.

        Before `freeze_module`, every trainable tensor of the backbone counts as trained, as in OpenDelta. On a sharded backbone,
        these are DTensors; ZeRO-3's partitions are gathered.
        """
        ledger_holding(self.backbone_model, self._entry)  # raises if the delta was removed
        reshard(self.backbone_model)
        own_tensors = {name: live_value(tensor) for name, tensor in self._live_tensors()}
        values = {name: value_of(self.backbone_model, self._entry, name) for name in sorted(self._entry.replaced)}
        modules = modules_by_name(self.backbone_model)
        records = dict(overrides(modules))
        trained = {
            name: records[name].own(parameter) if name in records else live_value(parameter)
            for name, parameter in own_parameters(modules)
            if parameter.requires_grad and (name not in records or not records[name].values)
        }
        return {**own_tensors, **values, **trained}

    def _live_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for address, insertion in self.insertions.items():
            for key, tensor in insertion.state_dict(keep_vars=True).items():
                yield delta_key(address, key), tensor

    def save_checkpoint(
        self,
        path: str | os.PathLike[str],
        save_func: Saver = save_safetensors,
        state_dict: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Save only the tensors, atomically to one file; missing folders are created.

        Args:
            path: the file.
            save_func: writes tensors to a path.
            state_dict: the tensors, by default the delta's own `state_dict()`.
        """
        target, tensors = Path(path), _gathered(self.state_dict() if state_dict is None else state_dict)

        def write() -> None:
            with storage_errors("Saving tensors", target.parent), staging(target.parent) as stage:
                save_func(tensors, stage / target.name)
                sync_file(stage / target.name)
                os.replace(stage / target.name, target)
                sync_folders([target.parent])

        done_once(self.backbone_model, write)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        load_func: Callable[[str], Mapping[str, Tensor]] | None = None,
        backbone_model: nn.Module | None = None,
    ) -> None:
        """Load tensors saved by `save_checkpoint` into this delta, strictly.

        Args:
            path: the file.
            load_func: reads tensors from a path, by default as safetensors.
            backbone_model: kept for OpenDelta's signature; the delta's own backbone is used.

        Raises:
            CheckpointError: the tensors do not fit; nothing was changed.
        """
        if load_func is None:
            refuse_larger(Path(path), self.backbone_model)
        self.load_state_dict(load_func(os.fspath(path)) if load_func else _read(Path(path)))

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into this delta, strictly.

        Args:
            tensors: a result of `state_dict()`, from here or elsewhere.

        Raises:
            CheckpointError: the tensors do not fit; nothing was changed.
            MergeError: the delta is merged into the backbone's weights, which would not follow.
        """
        refuse_merged(self.backbone_model)
        check_fit(self.state_dict(), tensors)
        live = dict(self._live_tensors())
        own_tensors = {name: tensor for name, tensor in tensors.items() if is_delta_name(name)}
        for name, tensor in own_tensors.items():
            assign(live[name], tensor)
        rest = {name: tensor for name, tensor in tensors.items() if name not in own_tensors}
        ledger_holding(self.backbone_model, self._entry).replace(self.backbone_model, self._entry, rest)

    def save_finetuned(
        self,
        finetuned_delta_path: str | os.PathLike[str] = "./delta_checkpoints/",
        save_config: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        save_function: Saver = save_safetensors,
        push_to_dc: bool = False,
        center_args: Mapping[str, Any] = {},
        center_args_pool: Mapping[str, Any] = {},
        list_tags: Sequence[str] = [],
        dict_tags: Mapping[str, Any] = {},
        delay_push: bool = False,
        test_result: Mapping[str, Any] | float | None = None,
        usage: str = "",
        probe: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Save the delta as a folder, atomically.

        If FSDP2 shards the backbone or ZeRO-3 partitions it, every process must call this: they gather the tensors together, one after
        another, and the first one writes.

        Args:
            finetuned_delta_path: the folder; other files in it are kept.
            save_config: False to write only the tensors, as `save_checkpoint` does.
            state_dict: the tensors to save, by default the delta's own `state_dict()`.
            save_function: writes tensors to a path as a safetensors file.
            push_to_dc: also push it to the default registry.
            center_args: facts for the model card: name, train_tasks, train_datasets, test_performance, license, ...
            center_args_pool: more facts; unknown keys are ignored.
            list_tags: labels to find it by.
            dict_tags: key=value tags to find it by.
            delay_push: print the command that pushes it, instead of pushing.
            test_result: metric to value, or one number.
            usage: instructions for use, for the model card.
            probe: a few inputs of the backbone's forward, at most 1 MB. The outputs with and without the delta are kept beside it, so that
                ``from_finetuned(..., check_probe=True)`` and ``deltahub verify --probe`` can prove that it acts, and acts the same.
            dtype: dtype of the delta's own parameters in the file; by default the one that they have. The delta on the backbone stays as it is.

        Raises:
            CheckpointError: `state_dict` lacks tensors of the delta or has others, a tensor is empty or not finite, the path is a file, tensors alone would break a delta there, or the delta has
                no effect on the probe.
            ConfigError: `dtype` is not one of floating-point numbers of 16 bits or more; PEFT has changed the backbone since; FSDP2 shards its
                quantised weights; or the delta's class would not be found when it is loaded: it is neither built in nor from an installed package.
            TargetError: the delta was removed, or a module with it has been replaced since.
            StorageError: the disk is full or not writable; no partial delta is left.
        """
        folder = _folder(finetuned_delta_path, alone=not save_config)
        facts = metadata.gather(center_args, center_args_pool, list_tags, dict_tags, test_result, usage)
        modules = modules_by_name(self.backbone_model)
        refuse_adapted(modules)
        refuse_sharded_codes(modules)
        self.check_places()
        probe_bytes = None if probe is None else Probe.take(self.backbone_model, self._entry, probe).to_bytes()
        warn_of_uncalled(self.backbone_model, self._entry)
        tensors = self._tensors_to_save(state_dict, dtype)
        if not save_config:
            self.save_checkpoint(folder / checkpoint.WEIGHTS, save_function, tensors)
            return
        package = package_for(self._entry.handle, self.config.delta_type)
        config, tensors = self._entry.handle.as_saved(self.config, tensors)
        description = {**config.to_dict(), **({"delta_package": package} if package else {})}
        identity = with_samples(fingerprint(self.backbone_model, replaced_names(tensors)), self.backbone_model)
        document = _document(self.backbone_model, self._entry, description, identity, facts)

        def write() -> None:
            card = _card(document, tensors, identity)
            checkpoint.write(folder, document, tensors, identity, card, save_function, probe_bytes)
            LOGGER.info("The delta has been saved in %s (%d tensors)", folder, len(tensors))
            if delay_push:
                print(f"deltahub push {shlex.quote(str(folder))}")  # noqa: T201  (OpenDelta prints the command to run later)
            elif push_to_dc:
                _push(folder)

        done_once(self.backbone_model, write)

    def _tensors_to_save(self, state_dict: Mapping[str, Tensor] | None, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Gather and check the tensors of a delta: see `save_finetuned`."""
        own = self.state_dict()
        tensors = _gathered(own if state_dict is None else state_dict)
        if state_dict is not None:
            _require_whole(own, state_dict)
        _check_savable(tensors)
        if dtype is not None:
            tensors = _as_dtype(tensors, dtype)
        _warn_if_whole(self.backbone_model, tensors)
        _warn_if_untrained(self.backbone_model, self._entry, tensors)
        return tensors


def _push(folder: Path) -> None:
    from deltahub.hub.hub import Hub

    pushed = Hub.open().push(folder)
    LOGGER.info("Pushed %s", pushed.reference)


def _gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: full_tensor(tensor) for name, tensor in sorted(tensors.items())}  # in the same order on every process


def _folder(path: str | os.PathLike[str], *, alone: bool) -> Path:
    """Return the folder to save into.

    Args:
        alone: whether the tensors are saved without a config.

    Raises:
        CheckpointError: it is a file, or tensors alone would break the delta there.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        msg = f"{folder} is a file; expected a folder to save into. Choose another path."
        raise CheckpointError(msg)
    if alone and checkpoint.is_checkpoint(folder):
        msg = f"{folder} holds a delta, whose config vouches for its tensors. Save tensors alone to another folder."
        raise CheckpointError(msg)
    return folder


def _document(
    backbone: nn.Module,
    entry: Entry,
    description: Mapping[str, Any],
    identity: Fingerprint,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the config of a checkpoint, without the digests of its files.

    Args:
        description: the options of the delta.
        identity: the record of the backbone.
        facts: the metadata.
    """
    return {
        "format_version": 1,
        "deltahub_version": VERSION,
        "transformers_version": installed("transformers"),
        "torch_version": installed("torch"),
        **description,
        "backbone_hash": identity.hash,
        **_revision(backbone),
        "parents": list(entry.parents),
        "metadata": facts,
    }


def _card(document: Mapping[str, Any], tensors: Mapping[str, Tensor], identity: Fingerprint) -> str:
    from deltahub.checkpoint.card import model_card
    from deltahub.checkpoint.description import fixed_values

    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    counts = {
        "delta": sum(size for name, size in sizes.items() if is_delta_name(name)),
        "total": sum(sizes.values()),
        "fixed": fixed_values(document, sizes),
    }
    return model_card(document, counts, identity)


def _warn_if_whole(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Warn if nothing is frozen: the whole backbone would be saved as a delta."""
    own_names = [name for name, _ in own_parameters(modules_by_name(backbone))]
    if own_names and all(name in tensors for name in own_names):
        LOGGER.warning(
            "Every parameter of the backbone is trainable, so all of them are saved with the delta. "
            "Call freeze_module(exclude=['deltas', ...]) before training to save only what is trained."
        )


def _warn_if_untrained(backbone: nn.Module, entry: Entry, tensors: Mapping[str, Tensor]) -> None:
    """Warn about a delta that provably changes nothing; a push refuses it if its files alone prove that."""
    starts = {delta_key(address, key) for address, insertion in entry.insertions.items() for key in insertion.starts}
    names = [name for name in tensors if name not in starts]
    config = {"delta_type": entry.config.delta_type}
    reason = why_identity(config, names, lambda name, value: not (tensors[name] != value).any())
    if not reason or (starts and not _at_start(backbone, entry)):
        return
    more = "without the backbone its files do not tell" if starts else "a push refuses it unless allow_untrained=True"
    LOGGER.warning("The delta changes no output: %s, as before training. It is saved all the same; %s.", reason, more)


def _at_start(backbone: nn.Module, entry: Entry) -> bool:
    """Return whether every tensor that started with a value computed from its layer still has it."""
    modules = modules_by_name(backbone)
    return not is_sharded(backbone) and all(  # sharded layers would have to be gathered
        insertion.at_start(modules[address]) for address, insertion in entry.insertions.items()
    )


def _require_whole(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Refuse a state dict with which the delta could not be loaded: of a part of it, or of something else.

    Raises:
        CheckpointError: a tensor of the delta is missing, has another shape, or does not belong to it.
    """
    wrong = [f"{name} is missing" for name in own if is_delta_name(name) and name not in given]
    wrong += [f"{name} is not part of this delta" for name in given if name not in own]
    for name in own.keys() & given.keys():
        if own[name].numel() and own[name].shape != given[name].shape:  # ZeRO-3 leaves empty tensors in the model
            wrong.append(f"{name} is {list(given[name].shape)}, expected {list(own[name].shape)}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        msg = f"The delta was not saved: in state_dict {'; '.join(wrong[:3])}{more}. Pass the whole state_dict() of the delta, gathered."
        raise CheckpointError(msg)


def _check_savable(tensors: Mapping[str, Tensor]) -> None:
    refuse_without_values(tensors, tensors)
    if empty := next((name for name, tensor in tensors.items() if tensor.numel() == 0), None):
        msg = (
            f"The delta was not saved: {empty} is empty, its shape is {list(tensors[empty].shape)}. DeepSpeed ZeRO-3 keeps such stand-ins "
            "in the model: gather the parameters, and pass them as state_dict."
        )
        raise CheckpointError(msg)
    if wrong := not_finite(tensors):
        msg = f"The delta was not saved: {'; '.join(wrong[:3])}. Training diverged; go back to an earlier state."
        raise CheckpointError(msg)


def _as_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return tensors with the delta's own in another precision.

    Raises:
        ConfigError: a delta cannot have this dtype.
        CheckpointError: a value is too large for it.
    """
    check_dtype(dtype)
    cast = {name: t.to(dtype) if is_delta_name(name) and t.is_floating_point() else t for name, t in tensors.items()}
    if wrong := not_finite(cast):
        msg = f"The delta was not saved: as {dtype}, {wrong[0]}. Save it in a wider dtype, such as torch.bfloat16."
        raise CheckpointError(msg)
    return cast


def _revision(backbone: nn.Module) -> dict[str, str]:
    """Return the backbone's commit from transformers, if known."""
    commit = getattr(getattr(backbone, "config", None), "_commit_hash", None)
    return {"backbone_revision": commit} if isinstance(commit, str) and commit else {}


@cache
def installed(package: str) -> str:
    """Return the version of an installed package; ``"unknown"`` if it runs from its source. To read it takes milliseconds."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
