"""Manifests of files in any store, built by reading only headers.

A complete delta gets the manifest that a push of its folder makes, so that its digest is the same either way; the files that a push to
a hub adds, the manifest and a page made from the card, are left out. Everything else, such as an adapter in another format, a
backbone, or an incomplete delta, is of the kind "files".
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.checkpoint import (
    CARD,
    CONFIG,
    LARGEST_CONFIG,
    WEIGHTS,
    listed_files,
    manifest_of,
    parse_document,
)
from deltahub.checkpoint.foreign import LONGEST_HEADER, MODEL_CONFIG, Foreign, recognise
from deltahub.checkpoint.manifest import FILES, FileEntry, Manifest, TensorEntry
from deltahub.checkpoint.safetensors_header import require_usable, tensor_entries, tensor_table
from deltahub.errors import CheckpointError, DeltaHubError, PickleRefusedError
from deltahub.files.atomic import read_range, sha256_file, storage_errors
from deltahub.files.documents import parse
from deltahub.reference import Digest
from deltahub.text.front_matter import texts

Read = Callable[[FileEntry, int, int], bytes]  # reads the bytes of a file from the first position to before the second
WHOLE: Final = "deltahub"  # the format of a delta beside other files
INCOMPLETE: Final = "part of a delta"  # the format of an incomplete delta
MANIFEST: Final = "manifest.json"  # the manifest of a delta in a hub's repo
OWN_CARD: Final = "delta_card.md"  # the delta's card, where the README is the repo's page, which people edit
_MOST_TENSORS: Final = 50_000  # maximum number of tensors in a manifest
_SHARD: Final = ".safetensors"


def describe_files(entries: Iterable[FileEntry], read: Read) -> Manifest:
    """Build the manifest of a set of files.

    Args:
        entries: the files, with the digests of their bytes.
        read: reads a range of a file.
    """
    files = {entry.path: entry for entry in sorted(entries, key=lambda entry: entry.path)}
    return _published(files, read) or _described(files, read)


def _published(files: Mapping[str, FileEntry], read: Read) -> Manifest | None:
    """Return the manifest among the files, if it belongs to the delta beside it and no other files are there."""
    if MANIFEST not in files:
        return None
    own_files = {path: entry for path, entry in files.items() if path not in (MANIFEST, OWN_CARD, CARD)}
    cards = [files[OWN_CARD]] if OWN_CARD in files else [files.get(CARD), None]
    for card in cards:
        manifest = _described({**own_files, CARD: replace(card, path=CARD)} if card else own_files, read)
        if manifest.digest == Digest.of_hex(files[MANIFEST].sha256):
            return manifest
    return None


def _described(files: Mapping[str, FileEntry], read: Read) -> Manifest:
    """Build the manifest of files without a manifest among them."""
    if CONFIG in files:
        try:
            return _delta(files, read)
        except DeltaHubError:  # loading reports the error
            return _of_files({"format": INCOMPLETE}, files, _tensors(files, read))
    sizes = {path: entry.size for path, entry in files.items()}
    foreign = recognise(sizes, lambda path, start, end: read(files[path], start, end))
    if foreign is None:
        return _of_files(_model_facts(files, read), files, _tensors(files, read))
    return foreign_manifest(foreign, files.values(), read)


def foreign_manifest(foreign: Foreign, entries: Iterable[FileEntry], read: Read) -> Manifest:
    """Build the manifest of a recognised delta of another library.

    Args:
        entries: the files to list, sorted by path.
        read: reads a range of a file.
    """
    files = {entry.path: entry for entry in entries}
    return _of_foreign(foreign, files, foreign.tensors or _tensors(files, read))


def _of_foreign(foreign: Foreign, files: Mapping[str, FileEntry], tensors: tuple[TensorEntry, ...]) -> Manifest:
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    return replace(_of_files(foreign.config, files, tensors, total), metrics=foreign.metrics)


def _of_files(
    config: Mapping[str, Any], files: Mapping[str, FileEntry], tensors: tuple[TensorEntry, ...], delta: int = 0
) -> Manifest:
    """Build a manifest of the kind "files".

    Args:
        delta: how many of the values in the tensors are a delta's.
    """
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    return Manifest(config, tuple(files.values()), tensors, {"total": total, "delta": delta}, kind=FILES)


def describe(folder: Path, *, allow_pickle: bool = False) -> Manifest:
    """Check the folder of a delta in any known format and build its manifest, without torch.

    A delta saved by DeltaHub vouches for its files; of another format, the files that belong to it are described as they are.

    Args:
        allow_pickle: whether a delta whose weights are a Python pickle is accepted; it is not opened.

    Raises:
        CheckpointError: there is no delta, or a file is missing or malformed.
        ConfigError: a value in the config is invalid.
        IntegrityError: a file differs from the one saved.
        PickleRefusedError: its weights are a pickle, and `allow_pickle` is false.
    """
    foreign = None if checkpoint.is_checkpoint(folder) else foreign_in(folder)
    if foreign is None:
        return checkpoint.describe(folder)
    if foreign.missing:
        msg = f"{folder} holds a part of a delta in the format {foreign.format}: {foreign.missing} is missing. Fetch it again."
        raise CheckpointError(msg)
    if foreign.pickles and not allow_pickle:
        msg = (
            f"{folder / foreign.pickles[0]} is a Python pickle, which can run code in the program that opens it. If you trust its author, "
            "repeat with --allow-pickle (deltahub convert, check, push or migrate; allow_pickle=True in Python). deltahub convert then writes "
            "it as safetensors: --format deltahub."
        )
        raise PickleRefusedError(msg)
    tables: list[tuple[TensorEntry, ...]] = []
    for name in foreign.files:
        _refuse_link(folder, name)
        if name.endswith(_SHARD):
            tables.append(tensor_table(folder / name, LONGEST_HEADER))
            require_usable(tables[-1], str(folder / name))
    entries = {name: FileEntry(name, *sha256_file(folder / name)) for name in foreign.files}
    return _of_foreign(foreign, entries, foreign.tensors or _merged(tables))


def left_out(folder: Path, manifest: Manifest) -> list[str]:
    """Return the names in a folder of another library's delta that are not part of it."""
    if manifest.kind != FILES:
        return []
    return sorted({path.name for path in folder.iterdir()} - {entry.path for entry in manifest.files})


def holds_delta(folder: Path) -> bool:
    """Return whether a folder holds a delta in any known format, complete or not."""
    return checkpoint.is_checkpoint(folder) or (folder.is_dir() and foreign_in(folder) is not None)


def foreign_in(folder: Path) -> Foreign | None:
    """Return the delta of another library in a folder; None if there is none.

    Raises:
        StorageError: the folder cannot be read.
    """
    with storage_errors("Looking for a delta", folder, "read"):
        if not folder.is_dir():
            return None
        with os.scandir(folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    return recognise(sizes, lambda name, start, end: read_range(folder / name, start, end))


def _refuse_link(folder: Path, name: str) -> None:
    """Refuse a link out of the folder, which could publish any file; in Hugging Face's cache each file is one to a blob.

    Raises:
        CheckpointError: it is such a link.
    """
    if not (folder / name).is_symlink():
        return
    target = Path(os.path.realpath(folder / name))  # unlike resolve(), no error for circular links
    own_folders = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    if not any(target.is_relative_to(own) for own in own_folders):
        msg = f"{folder / name} is a link to {target}, outside the folder. Copy the file there, or remove the link."
        raise CheckpointError(msg)


def _delta(files: Mapping[str, FileEntry], read: Read) -> Manifest:
    """Build the manifest of files that contain a complete delta.

    Raises:
        DeltaHubError: there is none; the message says why.
    """
    document = parse_document(_whole(files[CONFIG], read), CONFIG)
    listed = {entry.path: entry for entry in listed_files(document, CONFIG)}
    for name, entry in listed.items():
        file = files.get(name)
        if file is None:
            msg = f"{name} is missing, though {CONFIG} lists it. Add it."
            raise CheckpointError(msg)
        if file != entry:
            msg = f"{name} is not the file that {CONFIG} lists. Save the delta again, and add all of its files."
            raise CheckpointError(msg)
    manifest = manifest_of(document, files.values(), _table(files[WEIGHTS], read))
    if files.keys() - listed.keys() - {CONFIG, CARD}:  # there are files of something else too
        return replace(manifest, config={**manifest.config, "format": WHOLE}, kind=FILES)
    return manifest


def _table(entry: FileEntry, read: Read) -> tuple[TensorEntry, ...]:
    return tensor_entries(lambda start, end: read(entry, start, end), entry.size, entry.path, LONGEST_HEADER)


def _whole(entry: FileEntry, read: Read) -> bytes:
    if entry.size > LARGEST_CONFIG:
        msg = f"{entry.path} has {entry.size} bytes, and a config has {LARGEST_CONFIG} at most. Save it again."
        raise CheckpointError(msg)
    return read(entry, 0, entry.size) if entry.size else b""


def _model_facts(files: Mapping[str, FileEntry], read: Read) -> dict[str, Any]:
    """Return the model type of a backbone's files; any other files are just files."""
    config: Any = None
    if MODEL_CONFIG in files:
        with contextlib.suppress(ValueError, CheckpointError):
            config = parse(_whole(files[MODEL_CONFIG], read))
    if isinstance(config, dict) and isinstance(config.get("model_type"), str):
        return {
            "format": "transformers",
            "model_type": config["model_type"],
            "architectures": texts(config.get("architectures")),
        }
    return {"format": FILES}


def _tensors(files: Mapping[str, FileEntry], read: Read) -> tuple[TensorEntry, ...]:
    """Read the tensors of all safetensors files at the top level."""
    tables: list[tuple[TensorEntry, ...]] = []
    for entry in files.values():
        if "/" not in entry.path and entry.path.endswith(_SHARD):
            with contextlib.suppress(CheckpointError):
                tables.append(_table(entry, read))
    return _merged(tables)


def _merged(tables: Iterable[tuple[TensorEntry, ...]]) -> tuple[TensorEntry, ...]:
    """Merge tables of tensors, each name once, sorted; none if there are too many."""
    tensors: dict[str, TensorEntry] = {}
    for table in tables:
        tensors |= {tensor.name: tensor for tensor in table if tensor.name not in tensors}
    return tuple(tensors[name] for name in sorted(tensors)) if len(tensors) <= _MOST_TENSORS else ()
