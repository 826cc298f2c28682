"""The explicit structure maps, `deltahub/structures/*.json`: real name to common name, found by class name."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

MAPS: Final = Path(__file__).parents[2] / "structures"
MARK: Final = "@"


@dataclass
class NameTree:
    """One element of the real names in a map."""

    value: str | None = None
    children: dict[str, NameTree] = field(default_factory=dict)

    def add(self, path: str, value: str) -> None:
        """Map a real name, with ``*`` for each number in it, to a common name."""
        node = self
        for element in path.split("."):
            node = node.children.setdefault(element, NameTree())
        node.value = value

    def deepest(self, path: str) -> tuple[str, int]:
        """Return the common name of the nearest mapped ancestor, numbers filled in, and how many elements of `path` it covers."""
        node, numbers, nearest, covered = self, [], "", 0
        for depth, element in enumerate(path.split("."), 1):
            if (child := node.children.get(element)) is None and element.isdigit():
                child = node.children.get("*")
                numbers.append(element)
            if child is None:
                break
            node = child
            if node.value is not None:
                nearest, covered = node.value, depth
        if not covered:
            return "", 0
        filled = iter(numbers)
        return ".".join(next(filled) if e == "*" else f"{e}{MARK}" for e in nearest.split(".")), covered


@lru_cache(maxsize=1)
def explicit_maps() -> dict[str, tuple[NameTree, NameTree]]:
    """Return, by class name, the named modules and the groups of each class."""
    maps_by_class: dict[str, tuple[NameTree, NameTree]] = {}
    for path in sorted(MAPS.glob("*.json")):
        for table in json.loads(path.read_text("utf-8"))["maps"]:
            names, groups = NameTree(), NameTree()
            for real, common in table["names"].items():
                names.add(real, common)
            for common, members in table.get("groups", {}).items():
                for real in members:
                    groups.add(real, common)
            maps_by_class.update(dict.fromkeys(table["classes"], (names, groups)))
    return maps_by_class


def explicit_map(cls: type) -> tuple[NameTree, NameTree] | None:
    """Return the map of a class or of a base class, or None."""
    maps = explicit_maps()
    return next((maps[base.__name__] for base in cls.__mro__ if base.__name__ in maps), None)


def mapped_classes() -> tuple[str, ...]:
    """Return the classes that have an explicit structure map."""
    return tuple(sorted(explicit_maps()))
