"""Common structure: one name for the same part of every architecture, and the modules that addresses mean.

    encoder.layer.0.attention.self.query    BERT          encoder.block.0.attn.q
    h.0.attn.c_attn                         GPT-2         decoder.block.0.attn.q,k,v    (one module, three parts)

The maps are data, `deltahub/structures/*.json`, found by class name anywhere inside a backbone. Common names are written
plain (`attn.q`) or as OpenDelta writes them, with an "@" after each mapped element (`attn@.q@`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from torch import nn

from deltahub.address import Address, lies_within, nearest_names
from deltahub.engine.site import is_delta_name, refuse_own_deltas
from deltahub.errors import NoMatchError

MAPS: Final = Path(__file__).parents[1] / "structures"
MARK: Final = "@"


@dataclass(frozen=True)
class Part:
    """An equal share of a fused module's output, e.g. the q rows of a q,k,v projection.

    Attributes:
        label: its common name, e.g. ``"q"``.
        index: which share, from 0.
        count: how many shares there are.
    """

    label: str
    index: int
    count: int


@dataclass(frozen=True)
class Target:
    """A module that an address means, or some parts of it.

    Attributes:
        name: its real name.
        module: the module.
        parts: the parts meant; empty for the whole module.
    """

    name: str
    module: nn.Module
    parts: tuple[Part, ...] = ()


@dataclass
class _Names:
    """One element of the real names that a map knows."""

    value: str | None = None
    children: dict[str, _Names] = field(default_factory=dict)

    def add(self, path: str, value: str) -> None:
        node = self
        for element in path.split("."):
            node = node.children.setdefault(element, _Names())
        node.value = value

    def deepest(self, path: str) -> tuple[str, int]:
        """The common name of the nearest mapped ancestor, numbers filled in, and how many elements of `path` it covers."""
        node, numbers, best = self, [], ("", 0)
        for depth, element in enumerate(path.split("."), 1):
            if (child := node.children.get(element)) is None and element.isdigit():
                child = node.children.get("*")
                numbers.append(element)
            if child is None:
                break
            node = child
            if node.value is not None:
                filled = iter(numbers)
                elements = [next(filled) if e == "*" else f"{e}{MARK}" for e in node.value.split(".")]
                best = (".".join(elements), depth)
        return best


@lru_cache(maxsize=1)
def _maps() -> dict[str, tuple[_Names, _Names]]:
    """Class name to its named modules and its groups."""
    found: dict[str, tuple[_Names, _Names]] = {}
    for path in sorted(MAPS.glob("*.json")):
        for table in json.loads(path.read_text("utf-8"))["maps"]:
            names, groups = _Names(), _Names()
            for real, common in table["names"].items():
                names.add(real, common)
            for common, members in table.get("groups", {}).items():
                for real in members:
                    groups.add(real, common)
            found.update(dict.fromkeys(table["classes"], (names, groups)))
    return found


def mapped_classes() -> tuple[str, ...]:
    """The classes that have a structure map."""
    return tuple(sorted(_maps()))


@dataclass(frozen=True)
class StructureMap:
    """The common names of one backbone.

    Attributes:
        roots: prefix of each module that has a map (``""`` or ``"bert."``), with the tables of that map.
    """

    roots: tuple[tuple[str, tuple[_Names, _Names]], ...]

    @classmethod
    def of(cls, backbone: nn.Module) -> StructureMap:
        """Find the maps for the modules inside `backbone`."""
        return cls(tuple(_roots("", backbone)))

    def common_name(self, name: str) -> str:
        """The common name of a module in "@" writing; its own name where no map knows it."""
        for prefix, (names, _) in self.roots:
            if name.startswith(prefix):
                relative = name[len(prefix) :]
                common, covered = names.deepest(relative)
                if covered:
                    return prefix + ".".join([common, *relative.split(".")[covered:]])
        return name

    def group_name(self, name: str) -> str | None:
        """The common name of the group that a module is a member of, e.g. ``ff@`` for OPT's fc1 and fc2."""
        for prefix, (_, groups) in self.roots:
            if name.startswith(prefix):
                common, covered = groups.deepest(name[len(prefix) :])
                if covered == name[len(prefix) :].count(".") + 1:
                    return prefix + common
        return None

    def variants(self, name: str) -> Iterator[tuple[str, Part | None]]:
        """Every common name of a module: its own, its group's, and those of its parts if it is fused."""
        common = self.common_name(name)
        yield common, None
        if group := self.group_name(name):
            yield group, None
        head, _, last = common.rpartition(".")
        if "," in last:
            labels = last.removesuffix(MARK).split(",")
            for index, label in enumerate(labels):
                yield f"{head}.{label}{MARK}", Part(label, index, len(labels))


def _roots(prefix: str, module: nn.Module) -> Iterator[tuple[str, tuple[_Names, _Names]]]:
    table = next((_maps()[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in _maps()), None)
    if table is not None:
        yield prefix, table
        return
    for name, child in module.named_children():
        yield from _roots(f"{prefix}{name}.", child)


def find_targets(
    backbone: nn.Module,
    patterns: Sequence[str],
    exclude: Sequence[str] = (),
    common_structure: bool | None = None,
    optional: Collection[str] = (),
) -> list[Target]:
    """The modules that addresses mean, in the order of the backbone.

    Args:
        patterns: addresses (`deltahub.address`) by real or common name.
        exclude: addresses of modules that, with all inside them, are left out.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        optional: patterns that may match nothing as long as another one does: a method's defaults.

    Raises:
        NoMatchError: a pattern matches nothing; the message names the nearest names.
        TargetError: a part of the backbone itself is called `deltas`.
    """
    structure = StructureMap.of(backbone)
    every = dict(backbone.named_modules())
    refuse_own_deltas(every)
    modules = {name: module for name, module in every.items() if name and not is_delta_name(name)}
    hits: dict[str, set[Part | None]] = {}
    left_out = [*exclude, *map(marked, exclude)]
    missed = []
    for pattern in patterns:
        matched = _match(pattern, modules, structure, common_structure)
        matched = [(name, part) for name, part in matched if not _excluded(name, left_out, structure)]
        if not matched:
            missed.append(pattern)
        for name, part in matched:
            hits.setdefault(name, set()).add(part)
    unforgiven = [pattern for pattern in missed if pattern not in optional or not hits]
    if unforgiven or not hits:
        raise _no_match((unforgiven or ["an empty list of patterns"])[0], modules, exclude, structure, common_structure)
    return [_target(name, module, hits[name]) for name, module in modules.items() if name in hits]


def _target(name: str, module: nn.Module, found: set[Part | None]) -> Target:
    parts = () if None in found else tuple(sorted((p for p in found if p), key=lambda part: part.index))
    return Target(name, module, parts)


def without_excluded(backbone: nn.Module, targets: Sequence[Target], exclude: Sequence[str]) -> list[Target]:
    """Those targets that no pattern of `exclude` leaves out: a method may have chosen layers inside what was addressed.

    Raises:
        NoMatchError: none is left.
    """
    structure, left_out = StructureMap.of(backbone), [*exclude, *map(marked, exclude)]
    kept = [target for target in targets if not _excluded(target.name, left_out, structure)]
    if targets and not kept:
        raise NoMatchError(targets[0].name, (), f"All that it means is left out by exclude_modules={list(exclude)}.")
    return kept


def _excluded(name: str, patterns: Sequence[str], structure: StructureMap) -> bool:
    return lies_within(name, patterns) or lies_within(structure.common_name(name), patterns)


def marked(pattern: str) -> str:
    """A plain common name in "@" writing."""
    if MARK in pattern or pattern.startswith("[r]"):
        return pattern
    return ".".join(element if element.isdigit() else f"{element}{MARK}" for element in pattern.split("."))


def _match(
    pattern: str, names: Collection[str], structure: StructureMap, common_structure: bool | None
) -> list[tuple[str, Part | None]]:
    address = Address(pattern)
    if not common_structure and MARK not in pattern:
        real: list[tuple[str, Part | None]] = [(name, None) for name in names if address.matches(name)]
        if real or common_structure is False:
            return real
    elif common_structure is False:
        return []
    spelled = Address(marked(pattern))
    return [
        (name, part)
        for name in names
        for common, part in structure.variants(name)
        if address.matches(common) or spelled.matches(common) or _regex_matches_plain(address, common)
    ]


def _regex_matches_plain(address: Address, common: str) -> bool:
    return (
        address.pattern.startswith("[r]") and MARK not in address.pattern and address.matches(common.replace(MARK, ""))
    )


def _no_match(
    pattern: str,
    modules: Collection[str],
    exclude: Sequence[str],
    structure: StructureMap,
    common_structure: bool | None,
) -> NoMatchError:
    commons = (
        [structure.common_name(name).replace(MARK, "") for name in modules] if common_structure is not False else []
    )
    if _match(pattern, modules, structure, common_structure):
        return NoMatchError(pattern, (), f"All that it means is left out by exclude_modules={list(exclude)}.")
    near = nearest_names(pattern.replace(MARK, ""), [*modules, *commons])
    hint = ""
    if (MARK in pattern or common_structure) and not structure.roots:
        known = ", ".join(mapped_classes())
        hint = (
            "It is a common name, and this backbone has no structure map: pass modified_modules with real names "
            f"(`deltahub inspect` shows them). Classes with a map: {known}."
        )
    return NoMatchError(pattern, near, hint)
