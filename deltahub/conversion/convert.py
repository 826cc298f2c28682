"""Conversion of a delta, in a folder or a source, to another format.

A delta saved by DeltaHub is mapped as it is; its backbone is loaded only to merge, to verify, or to compute a LoRA. A delta of another library is
loaded on its backbone, as `AutoDeltaModel.from_finetuned` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.algebra.result import Change
from deltahub.auto import AutoDeltaModel
from deltahub.cache.cache import checked, pulled_reference, read_cached
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_fit import backbone_folder
from deltahub.checkpoint.checkpoint import CONVERTED, Checkpoint
from deltahub.checkpoint.foreign import is_path
from deltahub.checkpoint.from_files import describe
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files.atomic import WHOLE, read_limited
from deltahub.formats.backbone import Backbone
from deltahub.formats.backbone_check import require_recorded
from deltahub.formats.writing import Format, check_target, files_of, write_files, write_folder, written_from
from deltahub.handle.base import DeltaBase, deltas_of
from deltahub.handle.exporting import Exported, Source, check_dequantise, export, format_of, live
from deltahub.handle.probe import Probe
from deltahub.handle.recording import load_backbone
from deltahub.handle.verification import unchanged
from deltahub.hub.locating import locate


def convert(
    source: str | os.PathLike[str],
    to: str | os.PathLike[str],
    format: str,  # noqa: A002  (the name that users expect)
    *,
    backbone: str | os.PathLike[str] | nn.Module | None = None,
    verify: bool | Mapping[str, Tensor] = False,
    as_lora: int | None = None,
    energy: float | None = None,
    check_hash: bool | str = True,
    allow_pickle: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    dequantise: torch.dtype | None = None,
) -> Exported:
    """Write a delta in another format.

    Args:
        source: a folder in any format that `AutoDeltaModel.from_finetuned` reads, a reference, or a link.
        to: the folder to write: new, empty, or of the same format.
        format: one of the formats of docs/converting.md, such as ``"peft"``, ``"deltahub"`` or ``"merged"``.
        backbone: the delta's backbone: the folder, a model id in Hugging Face's cache, or the model. It is needed for a source of another
            library, for ``"merged"``, to verify, and for a LoRA; for others as in `export_peft`.
        verify: load what was written and compare the outputs with those of the source before it is moved into place: True for the inputs
            of the delta's probe, if it has one, else random tokens; or the inputs of the backbone's forward by name.
        as_lora: convert the delta to a LoRA of at most this rank first.
        energy: convert it to a LoRA that keeps this share of each update's squared norm.
        check_hash: as in `from_finetuned`: ``"dequantised"`` for the full precision of a quantised backbone, False for one that is not the
            recorded one.
        allow_pickle: whether the source's weights may be a pickle, which is then opened with `weights_only=True`.
        cache_dir: the cache for pulled deltas, if not the default one.
        dequantise: with ``"merged"`` on a quantised backbone: write a plain model of this dtype, and compare its outputs with those of the
            quantised one.

    Returns:
        The folder, its size, the error of each module of a computed LoRA, and the comparison.

    Raises:
        ConfigError: the format cannot hold the delta, or the backbone is needed; the message says why, and what to do instead.
        CheckpointError: the source cannot be read, `to` holds something else, or the delta to be verified has no effect.
        FingerprintMismatch: the backbone is not the one of the delta.
        VerificationError: the outputs differ. Nothing was written.
        StorageError: the disk is full or not writable; no part is left.
    """
    try:
        form, folder = format_of(format), Path(to).expanduser()
    except TypeError as error:
        msg = f"Expected a folder to write into, got {to!r} of type {type(to).__name__}."
        raise ConfigError(msg) from error
    check_dequantise(dequantise, form)
    lora = Rank(as_lora, energy) if as_lora is not None or energy is not None else None
    origin = read_cached(lambda: locate(source, cache_dir), lambda place: _read(place, allow_pickle=allow_pickle))
    _refuse_within(origin.folder, folder)
    if not (form is Format.DELTAHUB and lora is None and _is_copy(folder, origin)):
        check_target(folder, form)
    if reason := _reason_for_backbone(origin, form, is_verified=verify is not False, is_computed=lora is not None):
        if backbone is None:
            copy = " Or copy its files as they are: deltahub pull REF --to DIR" if origin.format == form else ""
            msg = f"{reason} needs the backbone of the delta: backbone=... in Python, --backbone on the command line.{copy}"
            raise ConfigError(msg)
        options = {"check_hash": check_hash, "allow_pickle": allow_pickle, "cache_dir": cache_dir}
        with _loaded(origin, source, backbone, options) as (delta, start):
            return _export(delta, replace(start, dequantise=dequantise), origin, folder, form, verify, lora)
    assert origin.saved is not None  # no reason
    model_or_path = backbone if backbone is None or isinstance(backbone, nn.Module) else os.fspath(backbone)
    facts = Backbone.of(origin.saved, model_or_path, exact=check_hash is True)
    require_recorded(origin.saved, facts, check_hash)
    content = files_of(form, origin.saved, facts)
    write_folder(folder, form, lambda stage: write_files(content, stage))
    return Exported(folder, form, sum(map(len, content.values())))


@dataclass(frozen=True)
class Rank:
    """The size of a computed LoRA.

    Attributes:
        rank: the largest rank of an update.
        energy: the share of each update's squared norm to keep.
    """

    rank: int | None
    energy: float | None


@dataclass(frozen=True)
class Origin:
    """The delta to convert, before it is on a backbone.

    Attributes:
        folder: its folder.
        format: the name of its format.
        saved: its content, if DeltaHub saved it.
        metadata: the facts that its author stated.
        base_model: the model id of its backbone, as far as its own files name one.
    """

    folder: Path
    format: str
    saved: Checkpoint | None
    metadata: Mapping[str, Any]
    base_model: str


def _read(folder: Path, *, allow_pickle: bool) -> Origin:
    """Read a delta saved by DeltaHub, or describe one of another library."""
    with checked(folder) as (place, config_sha256):
        if config_sha256 is not None or checkpoint.is_checkpoint(place):
            saved = replace(checkpoint.read(place, config_sha256=config_sha256), folder=folder)
            return Origin(folder, Format.DELTAHUB, saved, saved.document.get("metadata", {}), "")
        config = describe(place, allow_pickle=allow_pickle).config
    base = config.get("base_model") or config.get("backbone_checkpoint_name")
    named = base if isinstance(base, str) and not is_path(base) else ""
    return Origin(folder, str(config.get("format")), None, config.get("metadata", {}), named)


def _refuse_within(source: Path, to: Path) -> None:
    """Refuse a target inside the source, or around it.

    Raises:
        CheckpointError: one folder is in the other, or both are the same.
    """
    one, other = source.resolve(), to.resolve()
    if one == other or one in other.parents or other in one.parents:
        msg = f"{to} and the source {source} are one folder, or one is inside the other. Choose a folder of its own to write into."
        raise CheckpointError(msg)


def _is_copy(folder: Path, origin: Origin) -> bool:
    """Return whether a folder has the config and the card of the source, so that nothing is lost if they are written again."""
    return origin.saved is not None and all(
        (folder / name).is_file()
        and (origin.folder / name).is_file()
        and read_limited(folder / name, WHOLE) == read_limited(origin.folder / name, WHOLE)
        for name in (checkpoint.CONFIG, checkpoint.CARD)
    )


def _reason_for_backbone(origin: Origin, form: Format, *, is_verified: bool, is_computed: bool) -> str:
    """Return the subject of a sentence on what needs a loaded backbone; empty if nothing does."""
    if origin.saved is None:
        name = pulled_reference(origin.folder) or origin.folder
        return f"{name} is in the format {origin.format}, and its conversion"
    if form is Format.MERGED:
        return "A merged model"
    if is_computed:
        return "A conversion to a LoRA"
    return "Verification" if is_verified else ""


@contextmanager
def _loaded(
    origin: Origin,
    source: str | os.PathLike[str],
    backbone: str | os.PathLike[str] | nn.Module,
    options: Mapping[str, Any],
) -> Iterator[tuple[DeltaBase, Source]]:
    """Load a delta on its backbone; a model given by the caller is left as it was.

    Args:
        options: of `from_finetuned`.
    """
    model = backbone if isinstance(backbone, nn.Module) else load_backbone(os.fspath(backbone))
    before = set(deltas_of(model))
    with unchanged(model):
        try:
            delta = AutoDeltaModel.from_finetuned(source, backbone_model=model, **options)
            start = live(model, delta._entry)
            if not isinstance(backbone, nn.Module):
                folder = backbone_folder(os.fspath(backbone))
                named = "" if Path(backbone).expanduser().is_dir() else os.fspath(backbone)
                start = replace(start, named=named, tokenizers=(folder,), is_spare=True)
            yield (
                delta,
                replace(
                    start,
                    saved=origin.saved,
                    parent=delta._entry.parents[0],
                    named=start.named or origin.base_model,
                    tokenizers=(origin.folder, *start.tokenizers),
                    check_hash=options["check_hash"],
                ),
            )
        finally:
            for name, added in deltas_of(model).items():
                if name not in before:
                    added.remove()


def _export(
    delta: DeltaBase,
    start: Source,
    origin: Origin,
    folder: Path,
    form: Format,
    verify: bool | Mapping[str, Tensor],
    lora: Rank | None,
) -> Exported:
    """Write a loaded delta, or the LoRA computed from it."""
    changes: tuple[Change, ...] = ()
    if lora:
        conversion = delta.as_lora(lora.rank, lora.energy)
        parents = ({**start.parent, "relation": CONVERTED},)
        delta, changes = conversion.delta, conversion.changes
        delta._entry.parents = parents
        start = replace(start, entry=delta._entry, saved=None)
    if verify is True and origin.saved and origin.saved.probe:
        verify = Probe.from_bytes(origin.saved.probe, str(origin.folder / checkpoint.PROBE)).inputs

    def save(place: Path) -> None:
        delta.save_finetuned(place, center_args_pool=origin.metadata)
        with (place / checkpoint.CARD).open("a", encoding="utf-8") as card:  # so that a repetition may replace it
            card.write(f"\n{written_from(start.parent.get('digest'))}")

    return replace(export(start, folder, form, save, verify), changes=changes)
