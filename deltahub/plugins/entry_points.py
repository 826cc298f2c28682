"""Entry points: the names under which installed packages add delta types, stores and sources.

A group is scanned only for a name that is not built in, and only the entry point of that name is imported. A file or a
reference chooses among the installed names; it cannot name code. See the entry points specification of packaging.python.org.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from deltahub.errors import ConfigError
from deltahub.log import LOGGER


@dataclass(frozen=True)
class Group:
    """The entry points of a kind.

    Attributes:
        name: its name in a pyproject.toml.
        noun: the kind of thing that they add, for messages.
    """

    name: str
    noun: str

    def find(self, name: str, package: str | None = None) -> EntryPoint | None:
        """Return the entry point of a name without importing it; None if no installed package has one.

        Args:
            package: the only package to look in; None for all.

        Raises:
            ConfigError: several packages have one.
        """
        entries = self._by_name().get(name, ())
        if package is not None:
            entries = tuple(entry for entry in entries if _normalised(package_of(entry)) == _normalised(package))
        if len(entries) > 1:
            msg = (
                f"The {self.noun} {name!r} is in several packages: {_packages(entries)}. Uninstall all but one of them."
            )
            raise ConfigError(msg)
        return entries[0] if entries else None

    def load(self, entry: EntryPoint) -> Any:
        """Import the object of an entry point.

        Raises:
            ConfigError: the import fails.
        """
        try:
            return entry.load()
        except Exception as error:
            raise self.fault(entry, f"cannot be imported: {type(error).__name__}: {error}") from error

    def fault(self, entry: EntryPoint, clause: str) -> ConfigError:
        """Return the error for an entry point that does not work."""
        return ConfigError(
            f"The {self.noun} {entry.name!r} comes from the package {package_of(entry)}, whose {entry.value} {clause}. "
            "Update or uninstall that package."
        )

    def usable(self, built_in: Collection[str]) -> dict[str, EntryPoint]:
        """Return the entry points by name, and warn about names that are built in or in several packages."""
        usable = {}
        for name, entries in self._by_name().items():
            if name in built_in:
                LOGGER.warning("The %s %r of %s is ignored: it is built in.", self.noun, name, _packages(entries))
            elif len(entries) > 1:
                LOGGER.warning(
                    "The %s %r is ignored: several packages have it, %s.", self.noun, name, _packages(entries)
                )
            else:
                usable[name] = entries[0]
        return usable

    def _by_name(self) -> Mapping[str, tuple[EntryPoint, ...]]:
        return _scan(self.name, tuple(map(str, sys.path)))


DELTAS: Final = Group("deltahub.deltas", "delta type")
STORES: Final = Group("deltahub.stores", "URL scheme")
SOURCES: Final = Group("deltahub.sources", "source")


def package_of(entry: EntryPoint) -> str:
    """Return the name of the distribution that an entry point belongs to."""
    return entry.dist.name if entry.dist is not None else "of an unknown name"


def _normalised(package: str) -> str:
    """Return the name of a package as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _packages(entries: Collection[EntryPoint]) -> str:
    return ", ".join(sorted(map(package_of, entries)))


@cache
def _scan(group: str, path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of a group by name; `path` is `sys.path`, on which the answer depends."""
    entries_by_name: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in sorted(entry_points(group=group), key=lambda item: (item.name, package_of(item))):
        entries_by_name[entry.name] = (*entries_by_name.get(entry.name, ()), entry)
    return entries_by_name
