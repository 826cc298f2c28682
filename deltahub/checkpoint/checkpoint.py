"""The checkpoint folder: a delta's config, tensors and backbone record as files.

    delta_config.json     the delta's options, and the sha256 of the other files; written last, so it vouches for them
    delta.safetensors     tensors, `<address>.deltas.<parameter>` or the name of an unfrozen backbone tensor
    backbone.json         the backbone tensors that the delta does not change, one leaf each
    probe.safetensors     optional: inputs, with outputs with and without the delta
    README.md             the model card

The folder may also hold a backbone's own files, as a trainer's output folder does. Reading the config, the tensor
table and the digests needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.config import check_document
from deltahub.checkpoint.config_file import CONFIG, LARGEST_CONFIG, PICKLE, config_bytes, parse_document, read_document
from deltahub.checkpoint.manifest import DELTA_PART, FileEntry, Manifest, TensorEntry
from deltahub.checkpoint.safetensors_header import require_usable, tensor_table, usable_bytes
from deltahub.errors import CheckpointError, IntegrityError
from deltahub.files.atomic import (
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
from deltahub.reference import Digest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BACKBONE",
    "CARD",
    "CONFIG",
    "CONVERTED",
    "LARGEST",
    "LARGEST_CONFIG",
    "PICKLE",
    "PROBE",
    "RESUMED",
    "WEIGHTS",
    "Checkpoint",
    "Saver",
    "describe",
    "is_checkpoint",
    "listed_files",
    "manifest_of",
    "parse_document",
    "read",
    "read_document",
    "tensors_in",
    "verified_bytes",
    "write",
]

WEIGHTS: Final = "delta.safetensors"
BACKBONE: Final = "backbone.json"
PROBE: Final = "probe.safetensors"
CARD: Final = "README.md"
LARGEST: Final = 256 << 20  # maximum bytes of any other file except the tensors
RESUMED: Final = "resumed"  # relation to the parent delta: training was resumed,
CONVERTED: Final = "converted"  # or the delta was converted from another format
Saver = Callable[[Mapping[str, "Tensor"], Path], None]


@dataclass(frozen=True)
class Checkpoint:
    """A delta on disk with verified bytes.

    Attributes:
        folder: its folder.
        document: the content of `delta_config.json`.
        fingerprint: the backbone tensors that the delta does not change; None if the checkpoint has no record.
        tensors: name to tensor, on the CPU.
        parent: the entry for this delta in the `parents` of a delta trained on from it.
        unchanged: backbone tensors in the files of another library that are equal to the backbone's, and so not in `tensors`.
        probe: the content of its probe, if it has one.
    """

    folder: Path
    document: Mapping[str, Any]
    fingerprint: Fingerprint | None
    tensors: Mapping[str, Tensor]
    parent: Mapping[str, str]
    unchanged: tuple[str, ...] = ()
    probe: bytes | None = None


def is_checkpoint(folder: Path) -> bool:
    """Return whether `folder` holds a delta saved by DeltaHub."""
    return (folder / CONFIG).is_file()


def verified_bytes(folder: Path, name: str, document: Mapping[str, Any]) -> bytes:
    """Read one file of a checkpoint and check it against the size and the digest in `document`.

    The size, and the header of a safetensors file, are checked first: no memory is allocated for the rest before that.

    Raises:
        CheckpointError: the file is missing or malformed, or the config does not vouch for it.
        IntegrityError: the file's bytes differ.
    """
    return _verified(folder, name, document)[0]


def _verified(folder: Path, name: str, document: Mapping[str, Any]) -> tuple[bytes, tuple[TensorEntry, ...]]:
    """Return the bytes of `verified_bytes`, and the tensor table of the weights; no other file has one."""
    table: tuple[TensorEntry, ...] = ()
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
        if name != WEIGHTS and size > LARGEST:
            msg = f"{path} has {size} bytes, and {LARGEST} is the limit. Fetch or save the delta again."
            raise CheckpointError(msg)
        try:
            if name == WEIGHTS:
                data, table = usable_bytes(file, str(path))
            else:
                data = file.read(size)
        except CheckpointError:
            if size <= LARGEST:  # a malformed file is usually a damaged one
                file.seek(0)
                _require_same(path, entry, hashlib.file_digest(file, "sha256").hexdigest(), size)
            raise
    _require_same(path, entry, hashlib.sha256(data).hexdigest(), len(data))
    return data, table


def _require_same(path: Path, entry: Mapping[str, Any], sha256: str, size: int) -> None:
    if size != entry["size"]:
        raise _damaged(path, f"{entry['size']} bytes", f"{size} bytes")
    if sha256 != entry["sha256"]:
        raise _damaged(path, Digest.of_hex(entry["sha256"]), Digest.of_hex(sha256))


def _damaged(path: Path, expected: str, actual: str) -> IntegrityError:
    remedy = "The file was cut, changed, or an interrupted save left it. Fetch or save the delta again."
    if replaced_folder := next(path.parent.glob(f"{STAGE}*/{REPLACED}"), None):
        remedy += f" The files that an interrupted save was replacing are in {replaced_folder}."
    return IntegrityError(str(path), expected, actual, remedy)


def read(folder: Path, *, with_backbone: bool = True, config_sha256: str | None = None) -> Checkpoint:
    """Read a delta, checking every byte before it is used; each file is read once.

    Args:
        with_backbone: whether to read the backbone's record too.
        config_sha256: the expected sha256 for `read_document`; the config vouches for the other files.

    Raises:
        CheckpointError: a file is missing or malformed.
        ConfigError: a value in the config is invalid.
        IntegrityError: a file differs from the one saved.
    """
    config = config_bytes(folder, config_sha256)
    document = parse_document(config, str(folder / CONFIG))
    weights, table = _verified(folder, WEIGHTS, document)
    fingerprint = None
    if with_backbone and BACKBONE in document["files"]:
        fingerprint = Fingerprint.from_bytes(verified_bytes(folder, BACKBONE, document))
    tensors = tensors_in(weights, str(folder / WEIGHTS))
    parent = {"relation": RESUMED, "digest": _manifest(folder, config, document, table).digest}
    probe = verified_bytes(folder, PROBE, document) if PROBE in document["files"] else None
    return Checkpoint(folder, document, fingerprint, tensors, parent, probe=probe)


def tensors_in(data: bytes, file_name: str) -> dict[str, Tensor]:
    """Parse the bytes of a safetensors file into tensors on the CPU, sorted by name.

    safetensors returns another order in each process, and the processes of a sharded backbone must use the same order.

    Args:
        file_name: the name of the file, for messages.

    Raises:
        CheckpointError: the bytes are not a safetensors file.
    """
    import safetensors.torch  # late import: the rest of this module works without torch

    try:
        return dict(sorted(safetensors.torch.load(data).items()))
    except (safetensors.SafetensorError, KeyError) as error:
        msg = f"{file_name} is not a safetensors file ({error}). Fetch or save the delta again."
        raise CheckpointError(msg) from error


def describe(folder: Path) -> Manifest:
    """Check a checkpoint folder and build its manifest, without torch.

    Raises:
        CheckpointError: a file is missing or malformed.
        ConfigError: a value in the config is invalid.
        IntegrityError: a file differs from the one saved.
    """
    config = config_bytes(folder)
    document = parse_document(config, str(folder / CONFIG))
    listed = listed_files(document, str(folder / CONFIG))
    _refuse_foreign_card(folder)
    for entry in listed:
        path = folder / entry.path
        if not path.is_file():
            msg = f"{path} is missing, though {CONFIG} lists it. Fetch or save the delta again."
            raise CheckpointError(msg)
        if (size := path.stat().st_size) != entry.size:  # before hashing the whole file
            raise _damaged(path, f"{entry.size} bytes", f"{size} bytes")
        if (
            entry.path == WEIGHTS and size > LARGEST
        ):  # a small one that is malformed is most often damaged: the digest says so
            require_usable(tensor_table(path), str(path))
        _require_same(path, document["files"][entry.path], *sha256_file(path))
    manifest = _manifest(folder, config, document, tensor_table(folder / WEIGHTS))
    require_usable(manifest.tensors, str(folder / WEIGHTS))
    return manifest


def listed_files(document: Mapping[str, Any], place: str, remedy: str = "Save the delta again.") -> list[FileEntry]:
    """Return the files that a config vouches for.

    Args:
        document: the config.
        place: its path or address, for messages.
        remedy: the last sentence of the message.

    Raises:
        CheckpointError: the weights are not among them.
    """
    if WEIGHTS not in document.get("files", {}):
        msg = f"{place} lists no {WEIGHTS}, so its bytes cannot be checked. {remedy}"
        raise CheckpointError(msg)
    return [FileEntry(name, entry["sha256"], entry["size"]) for name, entry in document["files"].items()]


def _manifest(folder: Path, config: bytes, document: Mapping[str, Any], table: tuple[TensorEntry, ...]) -> Manifest:
    """Build the manifest of a checkpoint whose listed files are checked already; only its card is read.

    Args:
        config: the bytes of its config.
        document: its config.
        table: its tensors.
    """
    entries = [FileEntry.of(CONFIG, config)]
    if CARD not in document["files"] and (folder / CARD).is_file():
        entries.append(FileEntry.of(CARD, read_limited(folder / CARD, LARGEST)))
    return manifest_of(document, entries, table)


def manifest_of(document: Mapping[str, Any], entries: Iterable[FileEntry], table: tuple[TensorEntry, ...]) -> Manifest:
    """Build the manifest of a checkpoint from its config, which vouches for the files that it lists.

    Args:
        document: its config, already validated.
        entries: the files that it does not list.
        table: its tensors, sorted by name.

    Raises:
        CheckpointError: the weights are not listed.
    """
    files = {entry.path: entry for entry in (*entries, *listed_files(document, CONFIG))}
    counts = {entry.name: math.prod(entry.shape) for entry in table}
    return Manifest(
        config={key: value for key, value in document.items() if key != "files"},
        files=tuple(files[path] for path in sorted(files)),
        tensors=table,
        parameters={
            "total": sum(counts.values()),
            "delta": sum(count for name, count in counts.items() if DELTA_PART in f".{name}"),
        },
        metrics=tuple(_metrics(document.get("metadata", {}))),
    )


def _metrics(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Convert test results to the form of huggingface_hub's EvalResult."""
    results = dict(metadata.get("test_result", {}))
    if "test_performance" in metadata:
        name = (metadata.get("test_metrics") or ["performance"])[0]
        results.setdefault(name, metadata["test_performance"])
    tasks = metadata.get("test_tasks") or metadata.get("train_tasks") or []
    datasets = metadata.get("test_datasets") or metadata.get("train_datasets") or []
    context = {"task_type": "".join(tasks[:1]), "dataset_name": "".join(datasets[:1])}
    labels = {key: value for key, value in context.items() if value}
    return [{**labels, "metric_type": key, "metric_value": value} for key, value in sorted(results.items())]


def _refuse_foreign_card(folder: Path) -> None:
    """Refuse a card that links out of the folder: no digest vouches for it, so it could publish any file."""
    card = folder / CARD
    target = Path(os.path.realpath(card))  # unlike resolve(), no error for circular links
    if card.is_symlink() and not target.is_relative_to(folder.resolve()):
        msg = f"{card} is a link to {target}, outside the folder. Copy the file there, or remove the link."
        raise CheckpointError(msg)


def write(
    folder: Path,
    document: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    fingerprint: Fingerprint | None,
    card: str,
    save_function: Saver,
    probe: bytes | None = None,
) -> None:
    """Save a delta: stage every file, sync, then move them into place with the config last.

    A README that existed before the first delta is kept. A crash leaves the old delta, the new one, or a folder
    whose config does not vouch for its weights, which is refused.

    Args:
        fingerprint: the record of the backbone; None if it is not known.
        save_function: writes the tensors to a path, as a safetensors file.
        probe: the content of its probe; None for none.

    Raises:
        CheckpointError: `save_function` did not write a safetensors file.
        StorageError: the disk is full or not writable; the folder is unchanged.
    """
    with storage_errors("Saving the delta", folder):
        folder.mkdir(parents=True, exist_ok=True)
        with staging(folder) as stage:
            save_function(tensors, stage / WEIGHTS)
            require_usable(tensor_table(stage / WEIGHTS), str(folder / WEIGHTS))
            write_synced(stage / CARD, card.encode())
            shutil.copymode(stage / CARD, stage / WEIGHTS)  # safetensors makes its files private
            sync_file(stage / WEIGHTS)
            if fingerprint:
                write_synced(stage / BACKBONE, fingerprint.to_bytes())
            if probe:
                write_synced(stage / PROBE, probe)
            listed = [WEIGHTS, *([BACKBONE] if fingerprint else []), *([PROBE] if probe else [])]
            digests = {name: sha256_file(stage / name) for name in listed}
            files = {name: {"sha256": sha256, "size": size} for name, (sha256, size) in digests.items()}
            full_document = {**document, "files": files}
            check_document(full_document)
            text = json.dumps(full_document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
            write_synced(stage / CONFIG, f"{text}\n".encode())
            # A README that describes the other files stays.
            keeps_card = (folder / CARD).exists() and not is_checkpoint(folder)
            move_all(stage, folder, [name for name in (*listed, CARD, CONFIG) if not (keeps_card and name == CARD)])
            sync_folders([folder, folder.parent])
