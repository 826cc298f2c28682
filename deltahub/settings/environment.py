"""The folders of this user's data.

| variable | moves | default |
| --- | --- | --- |
| DELTAHUB_HOME | the local registry and the settings | the user's data folder, the user's settings folder |
| DELTAHUB_CACHE | the cache of pulled deltas | `cache` in DELTAHUB_HOME, or else the user's cache folder |
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from deltahub.errors import StorageError


def home() -> Path:
    """Return the folder of the user's own data."""
    if folder := os.environ.get("DELTAHUB_HOME"):
        return Path(folder).expanduser()
    import platformdirs

    return _own(platformdirs.user_data_path)


def cache_home() -> Path:
    """Return the folder of data that can be fetched again."""
    if folder := os.environ.get("DELTAHUB_CACHE"):
        return Path(folder).expanduser()
    if os.environ.get("DELTAHUB_HOME"):
        return home() / "cache"
    import platformdirs

    return _own(platformdirs.user_cache_path)


def config_home() -> Path:
    """Return the folder of the user's settings."""
    if os.environ.get("DELTAHUB_HOME"):
        return home()
    import platformdirs

    return _own(platformdirs.user_config_path)


def _own(place: Callable[..., Path]) -> Path:
    """Return one of this user's folders; raise StorageError for a user without a home."""
    folder: Path | None = None
    with contextlib.suppress(RuntimeError):
        folder = place("deltahub", appauthor=False)
    if folder is None or not folder.is_absolute():
        msg = (
            "This user has no home folder: HOME is not set, and there is no entry in the list of users. "
            "Set DELTAHUB_HOME and DELTAHUB_CACHE to folders for the registry and the cache."
        )
        raise StorageError(msg)
    return folder
