"""Where this user's data lies.

| variable | what it moves | without it |
| --- | --- | --- |
| DELTAHUB_HOME | the local registry, and the settings with it | the user's data folder, the user's settings folder |
| DELTAHUB_CACHE | the cache of pulled deltas | `cache` in DELTAHUB_HOME, or else the user's cache folder |
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder of the user's own data."""
    if folder := os.environ.get("DELTAHUB_HOME"):
        return Path(folder).expanduser()
    import platformdirs

    return platformdirs.user_data_path("deltahub", appauthor=False)


def cache_home() -> Path:
    """The folder of what can be fetched again."""
    if folder := os.environ.get("DELTAHUB_CACHE"):
        return Path(folder).expanduser()
    if os.environ.get("DELTAHUB_HOME"):
        return home() / "cache"
    import platformdirs

    return platformdirs.user_cache_path("deltahub", appauthor=False)


def config_home() -> Path:
    """The folder of the user's settings."""
    if os.environ.get("DELTAHUB_HOME"):
        return home()
    import platformdirs

    return platformdirs.user_config_path("deltahub", appauthor=False)
