"""A delta on a backbone, written in any format: staged, verified if asked for, and moved into place."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.algebra.result import Change
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_fit import backbone_folder
from deltahub.checkpoint.checkpoint import Checkpoint
from deltahub.checkpoint.foreign import TOKENIZER
from deltahub.engine.building import check_dtype
from deltahub.engine.guards import refuse_merged
from deltahub.engine.ledger import Entry
from deltahub.engine.sharding import is_sharded
from deltahub.errors import CheckpointError, ConfigError, MergeError
from deltahub.files.atomic import scratch, sync_file, write_synced
from deltahub.formats.backbone import Backbone
from deltahub.formats.writing import Format, card_from, files_of, write_files, write_folder
from deltahub.handle.loading import load
from deltahub.handle.merging import merged_copy, merged_for_good
from deltahub.handle.probe import detached, refuse_others
from deltahub.handle.recording import load_backbone
from deltahub.handle.types import class_for
from deltahub.handle.verification import Comparison, Reference, unchanged
from deltahub.log import LOGGER

_PROCESSOR: Final = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_QUANTISED: Final = ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")


@dataclass(frozen=True)
class Exported:
    """A delta that was written in a format.

    Attributes:
        folder: its folder.
        format: its format.
        size: the size of its files in bytes.
        changes: the rank and the relative error of each module, if it was converted to a LoRA first.
        comparison: the comparison with its source, if it was verified.
    """

    folder: Path
    format: Format
    size: int
    changes: tuple[Change, ...] = ()
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Source:
    """A delta to export, on its backbone.

    Attributes:
        backbone: the backbone that the delta is attached to.
        entry: the delta.
        saved: the delta as saved, where that is known already.
        parent: the entry of the saved delta that it was converted from, for its card; empty for a delta that was never saved.
        named: the model id of the backbone, if known.
        tokenizers: folders that may have the tokenizer of a merged model, the first choice first.
        check_hash: how the backbone is compared with the record of the delta: see `from_finetuned`.
        dequantise: the dtype of a merged model of a quantised backbone, whose layers become plain ones; None to refuse one.
        is_spare: whether nobody else uses the backbone, so that a delta is merged into it rather than into a copy.
    """

    backbone: nn.Module
    entry: Entry
    saved: Checkpoint | None = None
    parent: Mapping[str, str] = field(default_factory=dict)
    named: str = ""
    tokenizers: tuple[Path, ...] = ()
    check_hash: bool | str = True
    dequantise: torch.dtype | None = None
    is_spare: bool = False


def format_of(name: str) -> Format:
    """Return a format by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return Format(name)
    except ValueError as error:
        msg = f"{name!r} is not a format; expected one of {', '.join(Format)}."
        raise ConfigError(msg) from error


def check_dequantise(dtype: torch.dtype | None, form: Format) -> None:
    """Refuse to dequantise for a format without the backbone's weights, and into a dtype that is not one of floats.

    Raises:
        ConfigError: it is.
    """
    if dtype is None:
        return
    if form is not Format.MERGED:
        msg = f"dequantise is for a merged model; the format {form} holds the delta alone. Leave it out."
        raise ConfigError(msg)
    check_dtype(dtype)


def live(backbone: nn.Module, entry: Entry) -> Source:
    """Return a delta on a backbone in memory, with what the backbone knows of its own origin."""
    name = getattr(getattr(backbone, "config", None), "_name_or_path", "") or ""
    if name and Path(name).is_dir():
        return Source(backbone, entry, tokenizers=(Path(name),))
    try:
        return Source(backbone, entry, named=name, tokenizers=(backbone_folder(name),) if name else ())
    except CheckpointError:
        return Source(backbone, entry)


def export(
    source: Source,
    folder: Path,
    form: Format,
    save: Callable[[Path], None],
    verify: bool | Mapping[str, Tensor] = False,
) -> Exported:
    """Write an attached delta in a format: see `DeltaBase.export`.

    The folder was checked with `check_target`.

    Args:
        save: saves the delta to a folder, if `source.saved` is None.
    """
    if is_sharded(source.backbone):
        msg = "The backbone is sharded, so that no process has the whole of it. Call save_finetuned first, and convert the folder: deltahub convert."
        raise ConfigError(msg)
    refuse_merged(source.backbone)
    reference = None
    if verify is not False or form is Format.MERGED:
        _require_alone(source)
    check_dequantise(source.dequantise, form)
    if verify is not False or source.dequantise is not None:  # the values of codes are rounded: by how much is said
        inputs = None if isinstance(verify, bool) else verify
        reference = Reference.take(source.backbone, source.entry, inputs, is_exact=source.dequantise is None)
    done: list[Comparison] = []

    def check(stage: Path) -> None:
        if reference is not None:
            done.append(_verified(source, stage, form, reference))

    if form is Format.MERGED:
        model = _merged(source)
        write_folder(folder, form, lambda stage: _write_model(model, stage, source), check)
    else:
        with _saved(source, save) as saved:
            facts = Backbone.of(saved, source.backbone, exact=source.check_hash is True)
            content = files_of(form, saved, replace(facts, named=source.named or facts.named))
        write_folder(folder, form, lambda stage: write_files(content, stage), check)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Exported(folder, form, size, comparison=done[0] if done else None)


def _require_alone(source: Source) -> None:
    """Require that the delta, and no other one, acts on the backbone.

    Raises:
        ConfigError: it is detached, or another delta is attached.
    """
    if not source.entry.attached:
        msg = f"{source.entry.name!r} is detached, so it does not act on the backbone. Call attach() first."
        raise ConfigError(msg)
    refuse_others(source.backbone, source.entry)


@contextmanager
def _saved(source: Source, save: Callable[[Path], None]) -> Iterator[Checkpoint]:
    """Provide a delta as saved: as given, or saved to a temporary folder."""
    if source.saved is not None:
        yield source.saved
        return
    with scratch() as place:
        save(place / "delta")
        yield replace(checkpoint.read(place / "delta"), parent=source.parent)


def _merged(source: Source) -> Any:
    """Return the backbone with the delta merged, as a model of transformers.

    Raises:
        ConfigError: transformers cannot save it, it is quantised and not to be dequantised, or the delta cannot be merged.
    """
    backbone = source.backbone
    if not hasattr(backbone, "save_pretrained") or _is_part(type(backbone)):
        msg = f"A {type(backbone).__name__} cannot be saved so that transformers loads it by its config. Put the delta on a whole model of transformers."
        raise ConfigError(msg)
    quantised = any(getattr(backbone, name, False) is True for name in _QUANTISED) or getattr(
        backbone, "hf_quantizer", None
    )
    if quantised and source.dequantise is None:
        msg = (
            f"The {type(backbone).__name__} is quantised, and a merge would round the delta to its few bits. Write a plain model of its "
            "dequantised weights: dequantise=torch.bfloat16 in Python, --dequantise bfloat16 on the command line. Or load the backbone and the "
            "delta separately."
        )
        raise ConfigError(msg)
    try:
        return (merged_for_good if source.is_spare else merged_copy)(backbone, source.dequantise)
    except MergeError as error:
        msg = f"The delta cannot be written as a merged model. {error}"
        raise ConfigError(msg) from error


def _is_part(model_class: type[nn.Module]) -> bool:
    """Return whether a class is transformers' own but not public, such as T5Stack: by its config, another class would be loaded."""
    public = getattr(sys.modules[model_class.__module__], "__all__", ())
    return model_class.__module__.startswith("transformers.") and model_class.__name__ not in public


def _write_model(model: Any, stage: Path, source: Source) -> list[str]:
    """Save a model with its tokenizer and a card; return the names of the files, the config last."""
    with _without_progress():
        model.save_pretrained(stage)
    for group in (TOKENIZER, _PROCESSOR):
        holders = [place for place in source.tokenizers if any((place / name).is_file() for name in group)]
        for name in group if holders else ():
            if (holders[0] / name).is_file():
                shutil.copyfile(holders[0] / name, stage / name)
    write_synced(stage / checkpoint.CARD, card_from(source.parent.get("digest"), source.named, "transformers"))
    names = sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file())
    for name in names:
        sync_file(stage / name)
    return sorted(names, key=lambda name: name == "config.json")


def _verified(source: Source, stage: Path, form: Format, reference: Reference) -> Comparison:
    """Load what was written and compare its outputs.

    Raises:
        VerificationError: they differ.
        ConfigError: DeltaHub cannot read the format.
    """
    if form is Format.MERGED:
        return reference.compare(_model_in(stage, type(source.backbone)).to(_device(source.backbone)))
    with detached(source.backbone, source.entry), unchanged(source.backbone), _quiet():
        delta = load(
            class_for,
            stage,
            source.backbone,
            config=None,
            tensors=None,
            cache_dir=None,
            force_download=False,
            local_files_only=True,
            check_hash=source.check_hash,
            allow_pickle=True,  # OpenDelta's file, written a moment ago
            name=None,
            dtype=None,
            check_probe=False,
            options={},
        )
        try:
            return reference.compare(source.backbone)
        finally:
            delta.remove()


def _model_in(folder: Path, model_class: Any) -> Any:
    """Load a model by its config alone; one whose class is not of transformers by its class."""
    import transformers  # late: takes longer than torch

    if getattr(transformers, model_class.__name__, None) is model_class:
        return load_backbone(str(folder))
    return model_class.from_pretrained(folder, dtype="auto", local_files_only=True)


def _device(model: nn.Module) -> Any:
    return next((parameter.device for parameter in model.parameters()), "cpu")


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warnings of a load that serves a comparison only."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


@contextmanager
def _without_progress() -> Iterator[None]:
    """Hide transformers' progress bars."""
    from transformers.utils import logging as progress  # late: takes longer than torch

    shown = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            progress.enable_progress_bar()  # type: ignore[no-untyped-call]
