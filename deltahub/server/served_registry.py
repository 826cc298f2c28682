"""The registry that a hub serves."""

from __future__ import annotations

from deltahub.errors import ConfigError
from deltahub.registry.registry import Registry
from deltahub.settings.source_entry import HUB, SourceEntry, is_place
from deltahub.settings.user import Settings


def open_registry(name: str) -> Registry:
    """Return a registry by its source name or location, without contacting it.

    Args:
        name: a source of this user, e.g. ``"local"``, or a folder or ``"s3://bucket/prefix"``.

    Raises:
        NotFoundError: no source has this name.
        ConfigError: the source is itself a hub, or the location is malformed.
    """
    if is_place(name):
        return Registry(SourceEntry.checked("served", name).store(), "served")
    settings = Settings.read()
    settings.require(name)
    entry = next(entry for entry in settings.sources if entry.name == name)
    if entry.kind == HUB:
        msg = f"{name} is a hub itself, {entry.url}. Serve a registry: a folder, s3://bucket/prefix, or a source that is one."
        raise ConfigError(msg)
    return Registry(entry.store(), name)
