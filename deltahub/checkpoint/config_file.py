"""The config file of a checkpoint folder, `delta_config.json`: read, parsed, and missed with a word on what the folder holds instead."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from deltahub.checkpoint.config import check_document
from deltahub.checkpoint.damaged import refuse_damaged
from deltahub.errors import CheckpointError, IntegrityError, MissingFolderError
from deltahub.files.atomic import read_limited
from deltahub.files.documents import parse
from deltahub.reference import Digest

CONFIG: Final = "delta_config.json"
PICKLE: Final = "pytorch_model.bin"  # OpenDelta's file
LARGEST_CONFIG: Final = 8 << 20  # maximum bytes of a config to read
_OTHERS: Final = (  # content of a folder without a delta, by the name of a file in it; the last match wins
    ("config.json", "a model, which from_pretrained of transformers loads"),
    (
        "adapter_config.json",
        "an adapter of another library, which AutoDeltaModel.from_finetuned loads on its backbone if it is complete",
    ),
)


def read_document(folder: Path, expected: str | None = None) -> dict[str, Any]:
    """Read and validate `delta_config.json`.

    Args:
        expected: its sha256, 64 hex digits, if known; checked on the bytes that are used.

    Raises:
        IntegrityError: the file has another sha256.
        CheckpointError: the file is missing or not JSON.
        ConfigError: a value is invalid.
    """
    return parse_document(config_bytes(folder, expected), str(folder / CONFIG))


def config_bytes(folder: Path, expected: str | None = None) -> bytes:
    """Read `delta_config.json`.

    Args:
        expected: its sha256, 64 hex digits, if known.

    Raises:
        IntegrityError: the file has another sha256.
        CheckpointError: the file is missing; the message says what the folder holds instead.
    """
    path = folder / CONFIG
    if not folder.exists():
        msg = f"There is no folder {folder}. Check the path; it is the one that save_finetuned wrote."
        raise MissingFolderError(msg)
    if folder.is_file():
        msg = f"{folder} is a file, and a delta is a folder. Name the folder that it is in."
        raise CheckpointError(msg)
    if not path.is_file():
        refuse_damaged(folder)
        remedy = (
            "Expected a folder that save_finetuned wrote, or one with a delta of PEFT, AdapterHub, OpenDelta, diffusers, kohya or "
            "llama.cpp (GGUF)."
        )
        for name, contents in _OTHERS:
            if (folder / name).is_file():
                remedy = f"It holds {contents}."
        if (folder / PICKLE).is_file():
            remedy = (
                f"Its {PICKLE} is a pickle, which is neither pushed nor opened unasked: if you trust its author, load it "
                "with AutoDeltaModel.from_finetuned(..., allow_pickle=True) and save_finetuned() it as safetensors."
            )
        msg = f"{folder} holds no delta: {CONFIG} is missing. {remedy}"
        raise CheckpointError(msg)
    data = read_limited(path, LARGEST_CONFIG)
    if expected and (digest := hashlib.sha256(data).hexdigest()) != expected:
        raise IntegrityError(str(path), Digest.of_hex(expected), Digest.of_hex(digest), "Fetch the delta again.")
    return data


def parse_document(data: bytes, path: str) -> dict[str, Any]:
    """Read and validate the content of `delta_config.json`.

    Args:
        path: the path of the file, for messages.

    Raises:
        CheckpointError: the content is not JSON.
        ConfigError: a value is invalid.
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
