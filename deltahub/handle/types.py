"""Delta types by name: built in, defined by the running program, or added by an installed package (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any, Final

from deltahub.checkpoint.config import known_types, unknown_type
from deltahub.errors import ConfigError
from deltahub.log import LOGGER
from deltahub.plugins.entry_points import DELTAS, package_of

_TYPES: Final[dict[str, type[Any]]] = {}  # subclasses of DeltaBase


def register(cls: type[Any]) -> None:
    """Make a subclass of DeltaBase known by its `delta_type`; the first one keeps the name."""
    _TYPES.setdefault(cls.delta_type, cls)


def delta_classes() -> Mapping[str, type[Any]]:
    """Return the subclass of DeltaBase of every type, importing those of installed packages.

    A package that cannot be used is left out with a warning.
    """
    for entry in DELTAS.usable(known_types()).values():
        try:
            _class_of(entry)
        except ConfigError as error:
            LOGGER.warning("%s", error)
    return _TYPES


def class_for(delta_type: object, package: str | None = None) -> type[Any]:
    """Return the subclass of DeltaBase of a type.

    Args:
        package: the package that the type comes from according to a saved delta; None if it names none.

    Raises:
        ConfigError: the type is unknown, its package is not installed or does not work, or the type comes from another package.
    """
    if not isinstance(delta_type, str):
        raise unknown_type(delta_type, _TYPES)
    if package is None and delta_type in _TYPES:
        return _TYPES[delta_type]
    entry = _entry(delta_type, package)
    if entry is None and package is not None:
        raise ConfigError(_missing(delta_type, package))
    if entry is None:
        raise unknown_type(delta_type, {*_TYPES, *DELTAS.usable(known_types())})
    return _class_of(entry)


def loading_class(cls: type[Any], delta_type: str, package: str | None) -> type[Any]:
    """Return a subclass of DeltaBase if it loads deltas of a type, or the class of that type if this one has none of its own.

    Args:
        package: see `class_for`.

    Raises:
        ConfigError: the class is of another type, or the type is unknown.
    """
    known_class = class_for(delta_type, package)
    if not cls.delta_type:
        return known_class
    if cls.delta_type != delta_type:
        msg = f"{cls.__name__} loads deltas of type {cls.delta_type!r}, and this one is {delta_type!r}. Use AutoDeltaModel."
        raise ConfigError(msg)
    return cls


def package_for(cls: type[Any], config_type: str) -> str | None:
    """Return the package that a saved delta has to name so that it is loaded as its class; None for a built-in type.

    Args:
        cls: the class of the delta.
        config_type: the type of its config.

    Raises:
        ConfigError: the type would not be found again, or as another class.
    """
    name, entry = cls.delta_type, _entry(cls.delta_type)
    loaded_class = _class_of(entry) if entry else _TYPES.get(name) if name in known_types() else None
    if loaded_class is None or not issubclass(cls, loaded_class) or config_type != name:
        msg = (
            f"A {cls.__name__} with delta_type {name!r} and a config of type {config_type!r} cannot be saved: it would not be loaded "
            f"as that class again. Give both a name of their own, and add it to the entry points {DELTAS.name!r} of an installed "
            "package (docs/extending.md)."
        )
        raise ConfigError(msg)
    return package_of(entry) if entry else None


def _entry(delta_type: str, package: str | None = None) -> EntryPoint | None:
    """Return the entry point of a type that is not built in."""
    return None if delta_type in known_types() else DELTAS.find(delta_type, package)


def _class_of(entry: EntryPoint) -> type[Any]:
    loaded, cls = DELTAS.load(entry), _TYPES.get(entry.name)
    if cls is None or cls is not loaded or cls.config_class.delta_type != entry.name:
        if cls is loaded:
            _TYPES.pop(entry.name, None)  # or the next call would find it
        raise DELTAS.fault(
            entry,
            f"is not the one subclass of DeltaBase that has delta_type {entry.name!r}, as its config_class must too",
        )
    return cls


def _missing(delta_type: str, package: str) -> str:
    """Return why a type of a package cannot be used."""
    origin = f"This delta's type {delta_type!r} comes from the package {package}, "
    if other := DELTAS.find(delta_type):
        return (
            f"{origin}and here it is in {package_of(other)}, which may mean something else by it. "
            "Load the delta where the first is installed instead."
        )
    return f"{origin}which is not installed here or no longer has it. If you trust that package: pip install {package}"
