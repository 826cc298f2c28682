"""Opening the sources that a user has set up; none of them is asked anything yet."""

from __future__ import annotations

from pathlib import Path

from deltahub.places import home
from deltahub.registries import LOCAL, Registries
from deltahub.registry.registry import Registry
from deltahub.sources.base import Source
from deltahub.sources.registry import RegistrySource
from deltahub.stores.base import Store
from deltahub.stores.local import LocalStore


def open_sources(settings: Registries, indexes: Path) -> dict[str, Source]:
    """The sources by name, in the order in which a name without a source is looked up.

    Args:
        indexes: the folder in which search indexes are kept.
    """
    stores: dict[str, Store] = {LOCAL: LocalStore(home() / "registry")}
    stores |= {name: entry.store() for name, entry in settings.known.items()}
    return {name: RegistrySource(Registry(store, name), indexes) for name, store in stores.items()}
