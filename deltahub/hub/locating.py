"""The folder of a delta, wherever it is."""

from __future__ import annotations

import os
from pathlib import Path

from deltahub.errors import CheckpointError, ConfigError, MissingFolderError
from deltahub.hub.hub import Hub
from deltahub.link import Link, is_link, parse_reference
from deltahub.reference import Reference, is_placed


def locate(
    path: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Return the folder of a delta, given a folder, a reference or a link.

    Args:
        path: an existing folder, or a reference or link to pull.
        cache_dir: another folder for the cache.
        force: fetch it even if it is cached.
        local_files_only: use no network.

    Raises:
        CheckpointError: it looks like a folder that does not exist, or is a file.
        NotFoundError: no source has it.
    """
    return locate_exactly(path, cache_dir, force=force, local_files_only=local_files_only)[0]


def locate_exactly(
    path: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    local_files_only: bool = False,
) -> tuple[Path, Reference | Link | None]:
    """Return the folder of a delta like `locate`, and the exact version in it, whose meaning never changes; None for a folder."""
    try:
        text = os.fspath(path)
    except TypeError as error:
        msg = f"Expected a folder, a reference or a link, got {path!r} of type {type(path).__name__}."
        raise ConfigError(msg) from error
    if not is_link(text):
        folder = Path(path).expanduser()
        if folder.is_dir():
            return folder, None
        if folder.exists():
            msg = f"{text} is a file; expected the folder that save_finetuned wrote. Pass its parent folder."
            raise CheckpointError(msg)
        if not is_placed(text) and (
            folder.is_absolute() or text.startswith((".", "~")) or text.partition("@")[0].count("/") > 1
        ):
            msg = f"There is no folder {text}. Check the path, or pass a reference such as DeltaHub/sst2-t5-base."
            raise MissingFolderError(msg)
    pulled = Hub.open(cache_dir, local_files_only=local_files_only).pull(parse_reference(text), force=force)
    return pulled.folder, pulled.reference
