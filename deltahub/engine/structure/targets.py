"""The modules, or parts of them, that addresses mean: by real names, or by common ones (`engine/structure/names.py`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from deltahub.address import REGEX_MARK, Address, lies_within, nearest_names
from deltahub.engine.modules import own_modules
from deltahub.engine.site import refuse_own_deltas
from deltahub.engine.structure.inference import found_in
from deltahub.engine.structure.layouts import Part
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap, marked
from deltahub.errors import NoMatchError


@dataclass(frozen=True)
class Target:
    """A module that an address means, or some parts of it.

    Attributes:
        name: its real name.
        module: the module.
        parts: the parts meant; empty for the whole module.
        stands_in: whether it is a mixture of experts that was addressed as one of the layers it has no modules for.
    """

    name: str
    module: nn.Module
    parts: tuple[Part, ...] = ()
    stands_in: bool = False


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
    every = dict(own_modules(backbone))
    refuse_own_deltas(every)
    modules = {name: module for name, module in every.items() if name}
    hits: dict[str, set[Part | None]] = {}
    left_out = [*exclude, *map(marked, exclude)]
    missed = []
    tails: dict[str, list[str]] = {}  # thousands of whole names are not each held against thousands of modules
    for name in modules:
        tails.setdefault(name.rpartition(".")[2], []).append(name)
    for pattern in dict.fromkeys(patterns):
        ending = modules if pattern.startswith(REGEX_MARK) else tails.get(pattern.rpartition(".")[2], ())
        matched = _match(pattern, modules, structure, common_structure, ending)
        if not matched and pattern in optional and (whole := undivided(pattern)):
            matched = _match(whole, modules, structure, common_structure)
        matched = [(name, part) for name, part in matched if not _excluded(name, left_out, structure)]
        if not matched and pattern not in optional:
            raise _no_match(pattern, modules, exclude, structure, common_structure)
        if not matched:
            missed.append(pattern)
        for name, part in matched:
            hits.setdefault(name, set()).add(part)
    if not hits:
        raise _no_match((missed or ["an empty list of patterns"])[0], modules, exclude, structure, common_structure)
    experts = structure.guess.experts
    return [_target(n, module, hits[n], n in experts) for n, module in modules.items() if n in hits]


def undivided(pattern: str) -> str | None:
    """The name of a fused layer whose parts cannot be told apart, where a default pattern means one of them."""
    head, dot, last = pattern.rpartition(".")
    return f"{head}{dot}qkv{MARK}" if last in {f"q{MARK}", f"v{MARK}"} else None


def _target(name: str, module: nn.Module, found: set[Part | None], stands_in: bool) -> Target:
    parts = () if None in found else tuple(sorted((p for p in found if p), key=lambda part: part.start))
    return Target(name, module, parts, stands_in)


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


def _match(
    pattern: str,
    names: Collection[str],
    structure: StructureMap,
    common_structure: bool | None,
    ending: Collection[str] | None = None,
) -> list[tuple[str, Part | None]]:
    """The modules, or parts of them, that a pattern means.

    Args:
        ending: the names that can end like the pattern, where they are known; all others are not looked at as real names.
    """
    address = Address(pattern)
    if not common_structure and MARK not in pattern:
        real: list[tuple[str, Part | None]] = [
            (name, None) for name in (names if ending is None else ending) if address.matches(name)
        ]
        if real or common_structure is False:
            return real
    elif common_structure is False:
        return []
    return [
        (name, part)
        for name in names
        for common, part in structure.variants(name)
        if address.matches(common) or (MARK not in pattern and _matches_plain(address, common))
    ]


def _matches_plain(address: Address, common: str) -> bool:
    """Whether a pattern without "@" means a common name, whose own last element is one, not only those before it."""
    is_common = common.rstrip("0123456789.").endswith(MARK)
    return is_common and address.matches(common.replace(MARK, ""))


def _no_match(
    pattern: str,
    modules: Mapping[str, nn.Module],
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
        hint = (
            f"It is a common name, and no part of this backbone is certain to be it. {found_in(modules, structure.guess)} "
            "Pass modified_modules with real names; `deltahub inspect` shows them all."
        )
    return NoMatchError(pattern, near, hint)
