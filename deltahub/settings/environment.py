"""The environment of this user: folders of data, and switches.

| variable | moves | default |
| --- | --- | --- |
| DELTAHUB_HOME | the local registry and the settings | the user's data folder, the user's settings folder |
| DELTAHUB_CACHE | the cache of pulled deltas | `cache` in DELTAHUB_HOME, or else the user's cache folder |

DELTAHUB_OFFLINE and HF_HUB_OFFLINE forbid the use of the network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deltahub.errors import StorageError

VARIABLE: Final = "DELTAHUB_OFFLINE"
_HUGGING_FACE: Final = "HF_HUB_OFFLINE"
_ON: Final = frozenset({"1", "on", "yes", "true"})


def forbidden(*, hub: bool = False) -> str | None:
    """Return the reason not to use the network, as a clause; None if it may be used.

    `DELTAHUB_OFFLINE` decides if it is set, or else `HF_HUB_OFFLINE`. Requests through the client of Hugging Face obey both, because
    that client obeys its own variable.

    Args:
        hub: whether the client of Hugging Face is used.
    """
    own_value, is_hub_offline = os.environ.get(VARIABLE), _is_on(_HUGGING_FACE)
    if _is_on(VARIABLE):
        return f"{VARIABLE} is set"
    if is_hub_offline and (hub or not own_value):
        return f"{_HUGGING_FACE} is set"
    return None


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in _ON


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
