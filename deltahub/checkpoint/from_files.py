"""Manifests of files in any store, built by reading only headers.

A complete delta gets the manifest that a push of its folder makes, so that its digest is the same either way; the files that a push to
a hub adds, the manifest and a page made from the card, are left out. Everything else, such as an adapter in another format, a
backbone, or an incomplete delta, is of the kind "files".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from deltahub.checkpoint.checkpoint import (
    CARD,
    CONFIG,
    LARGEST_CONFIG,
    WEIGHTS,
    listed_files,
    manifest_of,
    parse_document,
)
from deltahub.checkpoint.manifest import DELTA, FILES, FileEntry, Manifest, TensorEntry
from deltahub.checkpoint.safetensors_header import tensor_entries
from deltahub.errors import CheckpointError, DeltaHubError
from deltahub.files.documents import parse
from deltahub.reference import Digest

Read = Callable[[FileEntry, int, int], bytes]  # reads the bytes of a file from the first position to before the second
WHOLE: Final = "deltahub"  # the format of a delta beside other files
INCOMPLETE: Final = "part of a delta"  # the format of an incomplete delta
MANIFEST: Final = "manifest.json"  # the manifest of a delta in a hub's repo
OWN_CARD: Final = "delta_card.md"  # the delta's card, where the README is the repo's page, which people edit
_MOST_TENSORS: Final = 50_000  # maximum number of tensors in a manifest
_LONGEST_HEADER: Final = 16 << 20  # maximum bytes of a safetensors header to read
_SHARD: Final = ".safetensors"


def describe_files(entries: Iterable[FileEntry], read: Read) -> Manifest:
    """Build the manifest of a set of files.

    Args:
        entries: the files, with the digests of their bytes.
        read: reads a range of a file.
    """
    files = {entry.path: entry for entry in sorted(entries, key=lambda entry: entry.path)}
    config = _format_facts(files, read)
    if CONFIG in files:
        try:
            return _published(files, read) or _delta(files, read)
        except DeltaHubError:  # loading reports the error
            config = {"format": INCOMPLETE}
    tensors = _tensors(files, read)
    total = sum(math.prod(tensor.shape) for tensor in tensors)
    parameters = {"total": total, "delta": total if "peft_type" in config else 0}
    return Manifest(config, tuple(files.values()), tensors, parameters, kind=FILES)


def _published(files: Mapping[str, FileEntry], read: Read) -> Manifest | None:
    """Return the manifest among the files, if it belongs to the delta beside it and no other files are there.

    Raises:
        DeltaHubError: there is no complete delta.
    """
    if MANIFEST not in files:
        return None
    own_files = {path: entry for path, entry in files.items() if path not in (MANIFEST, OWN_CARD, CARD)}
    cards = [files[OWN_CARD]] if OWN_CARD in files else [files.get(CARD), None]
    for card in cards:
        manifest = _delta({**own_files, CARD: replace(card, path=CARD)} if card else own_files, read)
        if manifest.kind == DELTA and manifest.digest == Digest.of_hex(files[MANIFEST].sha256):
            return manifest
    return None


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
    return tensor_entries(lambda start, end: read(entry, start, end), entry.size, entry.path, _LONGEST_HEADER)


def _whole(entry: FileEntry, read: Read) -> bytes:
    if entry.size > LARGEST_CONFIG:
        msg = f"{entry.path} has {entry.size} bytes, and a config has {LARGEST_CONFIG} at most. Save it again."
        raise CheckpointError(msg)
    return read(entry, 0, entry.size) if entry.size else b""


def _format_facts(files: Mapping[str, FileEntry], read: Read) -> dict[str, Any]:
    """Detect the format of the files and, as far as known, method, model type and base model."""
    adapter = _object(files, "adapter_config.json", read)
    if isinstance(adapter.get("peft_type"), str):
        fields = {"base_model": adapter.get("base_model_name_or_path"), "task_type": adapter.get("task_type")}
        texts = {key: value for key, value in fields.items() if isinstance(value, str) and value}
        return {"format": "peft", "peft_type": adapter["peft_type"], **texts}
    config = _object(files, "config.json", read)
    if isinstance(config.get("delta_type"), str):
        return {"format": "opendelta", "method": config["delta_type"]}
    if isinstance(config.get("model_type"), str):
        names = config.get("architectures")
        known_names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        return {"format": "transformers", "model_type": config["model_type"], "architectures": known_names}
    return {"format": "files"}


def _object(files: Mapping[str, FileEntry], name: str, read: Read) -> dict[str, Any]:
    """Read a file with a JSON object; return an empty dict if there is none."""
    if name not in files:
        return {}
    try:
        document = parse(_whole(files[name], read))
    except (ValueError, CheckpointError):
        return {}
    return document if isinstance(document, dict) else {}


def _tensors(files: Mapping[str, FileEntry], read: Read) -> tuple[TensorEntry, ...]:
    """Collect the tensors of all safetensors files at the top level, each name once, sorted; none if there are too many."""
    tensors: dict[str, TensorEntry] = {}
    for entry in files.values():
        if "/" not in entry.path and entry.path.endswith(_SHARD):
            try:
                table = _table(entry, read)
            except CheckpointError:
                continue
            tensors |= {tensor.name: tensor for tensor in table if tensor.name not in tensors}
    return tuple(tensors[name] for name in sorted(tensors)) if len(tensors) <= _MOST_TENSORS else ()
