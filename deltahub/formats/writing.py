"""The formats that a delta can be written in, their writers, and the one way in which files of any format reach a folder.

A writer is a module with a function ``files(saved: Checkpoint, backbone: Backbone) -> dict[str, bytes]``: it maps file names, in the order
in which they are moved into place, to their content, and raises ConfigError, with the reason and a way out, for a delta that its format
cannot hold. It writes nothing itself. ``saved.parent["digest"]`` is the digest of the delta as the user has it, for the card.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deltahub.checkpoint.checkpoint import CARD, CONFIG
from deltahub.checkpoint.strength import without_strength
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files.atomic import (
    STAGE,
    WHOLE,
    move_all,
    read_limited,
    staging,
    storage_errors,
    sync_folders,
    write_synced,
)

if TYPE_CHECKING:
    from deltahub.checkpoint.checkpoint import Checkpoint
    from deltahub.formats.backbone import Backbone


class Format(StrEnum):
    """A format that a delta can be written in."""

    DELTAHUB = "deltahub"
    PEFT = "peft"
    ADAPTERS = "adapters"
    OPENDELTA = "opendelta"
    DIFFUSERS = "diffusers"
    KOHYA = "kohya"
    GGUF = "gguf"
    MERGED = "merged"


@dataclass(frozen=True)
class Writer:
    """The writer of a format.

    Attributes:
        module: the module with its function `files`.
        mark: a file that every folder of the format has, as a glob pattern; a folder with it may be replaced.
        readers: the programs that read the format, for messages.
    """

    module: str
    mark: str
    readers: str


# One line for each writer; its module is imported on first use.
WRITERS: Final[Mapping[Format, Writer]] = {
    Format.DELTAHUB: Writer("deltahub.formats.as_saved", CONFIG, "DeltaHub"),
    Format.GGUF: Writer("deltahub.formats.gguf.export", "*.gguf", "llama.cpp"),
    Format.PEFT: Writer("deltahub.formats.peft.export", "adapter_config.json", "PEFT, vLLM and LoRAX"),
    Format.ADAPTERS: Writer("deltahub.formats.adapters.export", "adapter_config.json", "adapters 1.3"),
    Format.OPENDELTA: Writer("deltahub.formats.opendelta.export", "pytorch_model.bin", "OpenDelta 0.3"),
    Format.DIFFUSERS: Writer("deltahub.formats.diffusers.export", "pytorch_lora_weights.safetensors", "diffusers"),
    Format.KOHYA: Writer("deltahub.formats.diffusers.kohya_export", "lora.safetensors", "kohya's scripts and ComfyUI"),
}
_WRITTEN: Final = "Written by deltahub"  # on the card of every conversion
_MODEL: Final = "config.json"  # the mark of a merged model
_UPDATES: Final = ("adalora", "ia3", "vera", "weight_update")  # the types that change weights
_WEIGHTS: Final = (".safetensors", ".index.json", ".bin", ".pt", ".gguf")  # files that a loader may take instead


def files_of(form: Format, saved: Checkpoint, backbone: Backbone) -> dict[str, bytes]:
    """Return the files of a delta in a format, by name.

    Raises:
        ConfigError: the format cannot hold the delta, it has no writer, or the backbone is needed.
        CheckpointError: the delta or the backbone cannot be read.
        FingerprintMismatch: the backbone is not the one of the delta.
    """
    if form not in WRITERS:
        msg = f"DeltaHub cannot write the format {form} yet. It can write {', '.join(WRITERS)}."
        raise ConfigError(msg)
    if form is not Format.DELTAHUB:
        saved = replace(saved, document=without_strength(saved.document))
    try:
        files: dict[str, bytes] = import_module(WRITERS[form].module).files(saved, backbone)
    except ConfigError as error:
        if not _is_update(saved.document) or "--backbone" in str(error):
            raise
        msg = f"{error} Or convert it to a LoRA of a stated rank and error: --as-lora RANK or --energy SHARE (as_lora, energy in Python)."
        raise ConfigError(msg) from error
    return files


def _is_update(document: Mapping[str, Any]) -> bool:
    """Return whether a delta changes weights in another way than a LoRA, so that `as_lora` converts it."""
    return document["delta_type"] in _UPDATES or (document["delta_type"] == "lora" and bool(document.get("use_dora")))


def check_target(folder: Path, form: Format) -> None:
    """Refuse to write into a folder that holds something else.

    Raises:
        CheckpointError: the path is a file, or the folder holds anything but an earlier conversion to the format, which its card tells.
        StorageError: the folder cannot be read.
    """
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; expected a folder to write into. Choose another path."
        raise CheckpointError(msg)
    mark = WRITERS[form].mark if form in WRITERS else _MODEL
    card_path = folder / CARD
    with storage_errors("Looking at what would be overwritten", folder, "read"):
        if not _content(folder):
            return
        if not any(folder.glob(mark)):
            kind = "PEFT adapter" if form is Format.PEFT else f"delta in the format {form}"
            msg = f"{folder} contains something other than a {kind}. Choose a new folder."
            raise CheckpointError(msg)
        if not card_path.is_file() or _WRITTEN.encode() not in read_limited(card_path, WHOLE):
            msg = f"{folder} was not written by a conversion, and would be lost. Choose a new folder, or remove this one first."
            raise CheckpointError(msg)


def write_folder(
    folder: Path,
    form: Format,
    fill: Callable[[Path], Iterable[str]],
    verify: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Write a folder: stage all files, verify them there, then move them into place and sync.

    Args:
        folder: the folder to write: new, empty, or of the same format.
        fill: writes the files, synced, into an empty folder, and returns their names in the order in which they are moved.
        verify: raises an error for files that are not good; then nothing is written.

    Returns:
        The folder.

    Raises:
        CheckpointError: weights of something else would stay beside the new files.
        StorageError: the disk is full or not writable; the folder is as it was.
    """
    existed = folder.is_dir()
    try:
        with storage_errors(f"Writing the format {form}", folder), staging(folder) as stage:
            names = list(fill(stage))
            _refuse_leftovers(folder, names)
            verify(stage)
            move_all(stage, folder, names)
            sync_folders([folder, folder.parent])
    except BaseException:
        if not existed and folder.is_dir() and not _content(folder):
            folder.rmdir()
        raise
    return folder


def write_files(files: Mapping[str, bytes], into: Path) -> list[str]:
    """Write files, synced, into an empty folder; return their names."""
    for name, content in files.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        write_synced(into / name, content)
    return list(files)


def card(saved: Checkpoint, base: str, library: str) -> bytes:
    """Build the model card of a delta in the format of another library.

    Args:
        saved: the delta; the card names its digest, if it has one, for which the formats have no field.
        base: the model id of the backbone; empty if unknown.
        library: the value of `library_name`.
    """
    return card_from(saved.parent.get("digest"), base, library)


def card_from(digest: str | None, base: str, library: str) -> bytes:
    """Build the model card of a delta of a digest; None for one that was never saved."""
    front = f"base_model: {json.dumps(base)}\nlibrary_name: {library}\n" if base else f"library_name: {library}\n"
    return f"---\n{front}---\n\n{written_from(digest)}".encode()


def written_from(digest: str | None) -> str:
    """Return the sentence on the card of a conversion by which `check_target` knows it."""
    return f"{_WRITTEN}{f' from the delta {digest}' if digest else ''}.\n"


def _content(folder: Path) -> list[Path]:
    """Return what a folder holds, except stages of this and other processes."""
    return [path for path in folder.iterdir() if not path.name.startswith(STAGE)] if folder.is_dir() else []


def _refuse_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder with other weights, which a loader could take for those of the delta."""
    written = {Path(name).parts[0] for name in names}
    if left := sorted(
        path.name for path in _content(folder) if path.name.endswith(_WEIGHTS) and path.name not in written
    ):
        msg = f"{folder} also contains {left[0]}, which would stay beside the new files. Choose a new folder, or remove it first."
        raise CheckpointError(msg)
