"""The checkpoint folder: a delta's config, tensors and backbone record as files.

    delta_config.json     what the delta is, and the sha256 of the files beside it; written last, so it vouches for them
    delta.safetensors     tensors, `<address>.deltas.<parameter>` or the name of an unfrozen backbone tensor
    backbone.json         the backbone tensors that the delta leaves alone, one leaf each
    README.md             the model card

The folder may be shared with a backbone's own files, as a trainer's output folder is. Reading the config, the tensor
table and the digests needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deltahub.backbone import Fingerprint
from deltahub.config import check_document
from deltahub.errors import CheckpointError, IntegrityError
from deltahub.files import (
    REPLACED,
    STAGE,
    move_all,
    read_limited,
    regular,
    sha256_file,
    staging,
    storage_errors,
    sync_file,
    sync_folders,
    write_synced,
)
from deltahub.manifest import FileEntry, Manifest, manifest_of
from deltahub.schema import parse
from deltahub.tensorheader import require_usable, tensor_table, usable_bytes

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "delta_config.json"
WEIGHTS: Final = "delta.safetensors"
BACKBONE: Final = "backbone.json"
CARD: Final = "README.md"
PICKLE: Final = "pytorch_model.bin"  # what OpenDelta wrote
LARGEST_CONFIG: Final = 8 << 20  # bytes of a config that is read
_LARGEST: Final = 256 << 20  # and of any other file but the tensors
RESUMED: Final = "resumed"  # how a delta came of another: trained on from it,
CONVERTED: Final = "converted"  # or read from a checkpoint in the format of others
_OTHERS: Final = (  # what lies in a folder that is no delta, by a file of it, the more telling one last
    ("config.json", "a model, which from_pretrained of transformers loads"),
    ("adapter_config.json", "an adapter in the format of PEFT, which PeftModel.from_pretrained loads"),
)

Saver = Callable[[Mapping[str, "Tensor"], Path], None]


@dataclass(frozen=True)
class Checkpoint:
    """A delta on disk whose bytes have been checked.

    Attributes:
        folder: where it lies.
        document: the content of `delta_config.json`.
        fingerprint: the backbone tensors it leaves alone; None if the checkpoint does not say.
        tensors: name to tensor, on the CPU.
        parent: what a delta that is trained on from here says of it, as an entry of `parents` in its config.
    """

    folder: Path
    document: Mapping[str, Any]
    fingerprint: Fingerprint | None
    tensors: Mapping[str, Tensor]
    parent: Mapping[str, str]


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds a delta that DeltaHub saved."""
    return (folder / CONFIG).is_file()


def read_document(folder: Path, expected: str | None = None) -> dict[str, Any]:
    """Read and validate `delta_config.json`.

    Args:
        expected: its sha256, 64 hex digits, if that is known; checked on the bytes that are used.

    Raises:
        IntegrityError: it has another sha256.
        CheckpointError: there is none, or it is not JSON.
        ConfigError: it says something that can never work.
    """
    path = folder / CONFIG
    if not folder.exists():
        msg = f"There is no folder {folder}. Check the path; it is the one that save_finetuned wrote."
        raise CheckpointError(msg)
    if not path.is_file():
        remedy = "Point to the folder that save_finetuned wrote."
        for name, what in _OTHERS:
            if (folder / name).is_file():
                remedy = f"It holds {what}."
        if (folder / PICKLE).is_file():
            remedy = (
                f"Its {PICKLE} is a pickle, which is neither pushed nor opened unasked: if you trust its author, load it "
                "with AutoDeltaModel.from_finetuned(..., allow_pickle=True) and save_finetuned() it as safetensors."
            )
        msg = f"{folder} holds no delta: {CONFIG} is missing. {remedy}"
        raise CheckpointError(msg)
    data = read_limited(path, LARGEST_CONFIG)
    if expected and (found := hashlib.sha256(data).hexdigest()) != expected:
        raise IntegrityError(str(path), f"sha256:{expected}", f"sha256:{found}", "Fetch the delta again.")
    return parse_document(data, str(path))


def parse_document(data: bytes, path: str) -> dict[str, Any]:
    """Read and validate the content of `delta_config.json`.

    Args:
        path: where it is, for messages.

    Raises:
        CheckpointError: it is not JSON.
        ConfigError: it says something that can never work.
    """
    try:
        document = parse(data)
    except ValueError as error:
        msg = f"{path} is not JSON ({error}). Restore it, or save the delta again."
        raise CheckpointError(msg) from error
    if not isinstance(document, dict):
        msg = (
            f"{path} holds {document!r:.40}, expected an object with the delta's options. Restore it, or save it again."
        )
        raise CheckpointError(msg)
    check_document(document)
    return document


def verified_bytes(folder: Path, name: str, document: Mapping[str, Any]) -> bytes:
    """Read one file of a checkpoint and check it against the size and the digest in `document`.

    The size is compared, and of a safetensors file the header read, before the rest: only then is there memory for it.

    Raises:
        CheckpointError: the file is missing or malformed, or the config does not vouch for it.
        IntegrityError: its bytes are other ones.
    """
    entry = document.get("files", {}).get(name)
    if entry is None:
        msg = f"{folder / CONFIG} lists no digest for {name}, so its bytes cannot be checked. Save the delta again."
        raise CheckpointError(msg)
    path = folder / name
    if not path.is_file():
        msg = f"{path} is missing, though {CONFIG} lists it. Fetch or save the delta again."
        raise CheckpointError(msg)
    with regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) != entry["size"]:
            raise _damaged(path, f"{entry['size']} bytes", f"{size} bytes")
        if name != WEIGHTS and size > _LARGEST:
            msg = f"{path} has {size} bytes, and {_LARGEST} is the limit. Fetch or save the delta again."
            raise CheckpointError(msg)
        try:
            data = usable_bytes(file, str(path)) if name == WEIGHTS else file.read(size)
        except CheckpointError:
            if size <= _LARGEST:  # a malformed file is most often a damaged one
                file.seek(0)
                _require_same(path, entry, hashlib.file_digest(file, "sha256").hexdigest(), size)
            raise
    _require_same(path, entry, hashlib.sha256(data).hexdigest(), len(data))
    return data


def _require_same(path: Path, entry: Mapping[str, Any], sha256: str, size: int) -> None:
    if size != entry["size"]:
        raise _damaged(path, f"{entry['size']} bytes", f"{size} bytes")
    if sha256 != entry["sha256"]:
        raise _damaged(path, f"sha256:{entry['sha256']}", f"sha256:{sha256}")


def _damaged(path: Path, expected: str, found: str) -> IntegrityError:
    remedy = "The file was cut, changed, or an interrupted save left it. Fetch or save the delta again."
    if before := next(path.parent.glob(f"{STAGE}*/{REPLACED}"), None):
        remedy += f" What an interrupted save was about to replace is in {before}."
    return IntegrityError(str(path), expected, found, remedy)


def read(folder: Path, *, with_backbone: bool = True, config_sha256: str | None = None) -> Checkpoint:
    """Read a delta; every byte is checked before it is used.

    Args:
        with_backbone: whether the backbone's record is wanted too.
        config_sha256: as `read_document` takes it; the config vouches for the other files.

    Raises:
        CheckpointError: a file is missing or malformed.
        ConfigError: the config can never work.
        IntegrityError: a file is not the one that was saved.
    """
    document = read_document(folder, config_sha256)
    weights = verified_bytes(folder, WEIGHTS, document)
    fingerprint = None
    if with_backbone and BACKBONE in document["files"]:
        fingerprint = Fingerprint.from_bytes(verified_bytes(folder, BACKBONE, document))
    tensors = tensors_in(weights, str(folder / WEIGHTS))
    parent = {"relation": RESUMED, "digest": _manifest(folder, document, _listed(document)).digest}
    return Checkpoint(folder, document, fingerprint, tensors, parent)


def tensors_in(data: bytes, what: str) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file, sorted by name, on the CPU.

    safetensors gives them in another order in each process, and the processes of a sharded backbone must agree on one.

    Args:
        what: the file, for messages.

    Raises:
        CheckpointError: it is not a safetensors file.
    """
    import safetensors.torch  # late: the rest of this module serves readers without torch

    try:
        return dict(sorted(safetensors.torch.load(data).items()))
    except (safetensors.SafetensorError, KeyError) as error:
        msg = f"{what} is not a safetensors file ({error}). Fetch or save the delta again."
        raise CheckpointError(msg) from error


def describe(folder: Path) -> Manifest:
    """Check a checkpoint folder and make its manifest, without torch.

    Raises:
        CheckpointError: a file is missing or malformed.
        ConfigError: the config can never work.
        IntegrityError: a file is not the one that was saved.
    """
    document = read_document(folder)
    if WEIGHTS not in document.get("files", {}):
        msg = f"{folder / CONFIG} lists no {WEIGHTS}, so its bytes cannot be checked. Save the delta again."
        raise CheckpointError(msg)
    _refuse_foreign_card(folder)
    listed = _listed(document)
    for entry in listed:
        path = folder / entry.path
        if not path.is_file():
            msg = f"{path} is missing, though {CONFIG} lists it. Fetch or save the delta again."
            raise CheckpointError(msg)
        if (size := path.stat().st_size) != entry.size:  # before it is read whole
            raise _damaged(path, f"{entry.size} bytes", f"{size} bytes")
        if (
            entry.path == WEIGHTS and size > _LARGEST
        ):  # a small one that is malformed is most often damaged: the digest says so
            require_usable(tensor_table(path), str(path))
        _require_same(path, document["files"][entry.path], *sha256_file(path))
    found = _manifest(folder, document, listed)
    require_usable(found.tensors, str(folder / WEIGHTS))
    return found


def _listed(document: Mapping[str, Any]) -> list[FileEntry]:
    """The files that a config vouches for."""
    return [FileEntry(name, entry["sha256"], entry["size"]) for name, entry in document["files"].items()]


def _manifest(folder: Path, document: Mapping[str, Any], checked: list[FileEntry]) -> Manifest:
    """The manifest of a checkpoint whose listed files have been checked; only what is small is read."""
    names = {CONFIG, *([CARD] if (folder / CARD).is_file() else [])} - {entry.path for entry in checked}
    small = {name: read_limited(folder / name, _LARGEST) for name in names}
    entries = [*checked, *(FileEntry(n, hashlib.sha256(data).hexdigest(), len(data)) for n, data in small.items())]
    return manifest_of(document, entries, tensor_table(folder / WEIGHTS))


def _refuse_foreign_card(folder: Path) -> None:
    """Refuse a card that is a link out of the folder: no digest vouches for it, so any file could be published."""
    card = folder / CARD
    target = Path(os.path.realpath(card))  # unlike resolve(), not an error where links go in a circle
    if card.is_symlink() and not target.is_relative_to(folder.resolve()):
        msg = f"{card} is a link to {target}, outside the folder. Copy the file there, or remove the link."
        raise CheckpointError(msg)


def write(
    folder: Path,
    document: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    fingerprint: Fingerprint,
    card: str,
    save_function: Saver,
) -> None:
    """Save a delta: stage every file, sync, then move them in place with the config last.

    A README that was there before the first delta is left alone. A crash leaves the old delta, the new one, or a folder
    whose config does not vouch for its weights and is refused.

    Args:
        save_function: writes the tensors to a path, as a safetensors file.

    Raises:
        CheckpointError: `save_function` wrote something else.
        StorageError: the disk is full or not writable; the folder is as it was.
    """
    with storage_errors("Saving the delta", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with staging(folder) as stage:
            save_function(tensors, stage / WEIGHTS)
            require_usable(tensor_table(stage / WEIGHTS), str(folder / WEIGHTS))
            write_synced(stage / BACKBONE, fingerprint.to_bytes())
            shutil.copymode(stage / BACKBONE, stage / WEIGHTS)  # safetensors lets nobody else read what it writes
            sync_file(stage / WEIGHTS)
            write_synced(stage / CARD, card.encode())
            digests = {name: sha256_file(stage / name) for name in (WEIGHTS, BACKBONE)}
            files = {name: {"sha256": sha256, "size": size} for name, (sha256, size) in digests.items()}
            whole = {**document, "files": files}
            check_document(whole)
            text = json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
            write_synced(stage / CONFIG, f"{text}\n".encode())
            theirs = (folder / CARD).exists() and not is_checkpoint(folder)  # the README of what lies beside the delta
            move_all(
                stage, folder, [name for name in (WEIGHTS, BACKBONE, CARD, CONFIG) if not (theirs and name == CARD)]
            )
            sync_folders([folder, folder.parent])
