"""Common structure: one name for the same part of every architecture, and the modules that addresses mean.

    encoder.layer.0.attention.self.query    BERT          encoder.block.0.attn.q
    h.0.attn.c_attn                         GPT-2         decoder.block.0.attn.q,k,v    (one module, three parts)

The main families have explicit maps (`engine/structure/maps.py`), found by class name anywhere inside a backbone; all else is
inferred from the modules (`engine/structure/inference.py`). Common names are written plain (`attn.q`) or as OpenDelta writes them,
with an "@" after each mapped element (`attn@.q@`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from deltahub.address import REGEX_MARK, Address, lies_within, nearest_names
from deltahub.engine.site import own_modules, refuse_own_deltas
from deltahub.engine.structure.inference import Inferred, found_in, infer
from deltahub.engine.structure.layouts import Part, in_turn
from deltahub.engine.structure.maps import MARK, Names, explicit_map, mapped_classes
from deltahub.errors import NoMatchError

__all__ = ["MARK", "Part", "StructureMap", "Target", "find_targets", "mapped_classes", "marked", "without_excluded"]


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


@dataclass(frozen=True)
class StructureMap:
    """The common names of one backbone.

    Attributes:
        roots: prefix of each module that has an explicit map (``""`` or ``"bert."``), with the tables of that map.
        guess: what was inferred of the modules outside them.
        known: names that were looked up before, by real name.
    """

    roots: tuple[tuple[str, tuple[Names, Names]], ...] = ()
    guess: Inferred = field(default_factory=Inferred)
    known: dict[str, tuple[tuple[str, Part | None], ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def inferred(self) -> bool:
        """Whether the names, or some of them, were inferred from the modules rather than written down."""
        return bool(self.guess.names)

    @classmethod
    def of(cls, backbone: nn.Module) -> StructureMap:
        """Find the maps for the modules inside `backbone`, and infer the names of the rest."""
        roots, rest = [], {}
        inside = None
        for name, module in own_modules(backbone):
            if inside is not None and name.startswith(inside):
                continue
            table = explicit_map(type(module))
            if table is None:
                rest[name] = module
            else:
                inside = f"{name}." if name else ""
                roots.append((inside, table))
        return cls(tuple(roots), infer(rest))

    def common_name(self, name: str) -> str:
        """The common name of a module in "@" writing; its own name where no map knows it."""
        return self.variants(name)[0][0]

    def _looked_up(self, name: str) -> str:
        for prefix, (names, _) in self.roots:
            if name.startswith(prefix):
                relative = name[len(prefix) :]
                common, covered = names.deepest(relative)
                if covered:
                    return prefix + ".".join([common, *relative.split(".")[covered:]])
        return self.guess.common_name(name)

    def group_name(self, name: str) -> str | None:
        """The common name of the group that a module is a member of, e.g. ``ff@`` for OPT's fc1 and fc2."""
        for prefix, (_, groups) in self.roots:
            if name.startswith(prefix):
                common, covered = groups.deepest(name[len(prefix) :])
                if covered == name[len(prefix) :].count(".") + 1:
                    return prefix + common
        return self.guess.groups.get(name)

    def variants(self, name: str) -> tuple[tuple[str, Part | None], ...]:
        """Every common name of a module: its own, its group's, and those of its parts if it is fused."""
        found = self.known.get(name)
        if found is None:
            found = self.known[name] = tuple(self._spelled(name))
        return found

    def _spelled(self, name: str) -> Iterator[tuple[str, Part | None]]:
        common = self._looked_up(name)
        yield common, None
        if group := self.group_name(name):
            yield group, None
        for alias in self.guess.aliases.get(name, ()):
            yield alias, None
        head, _, last = common.rpartition(".")
        parts = self.guess.parts.get(name) or (in_turn(last.removesuffix(MARK)) if "," in last else ())
        for part in parts:
            yield f"{head}.{part.label}{MARK}", part


CommonStructureMap = StructureMap  # its name in OpenDelta


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
    for pattern in patterns:
        ending = modules if pattern.startswith(REGEX_MARK) else tails.get(pattern.rpartition(".")[2], ())
        matched = _match(pattern, modules, structure, common_structure, ending)
        if not matched and pattern in optional and (whole := undivided(pattern)):
            matched = _match(whole, modules, structure, common_structure)
        matched = [(name, part) for name, part in matched if not _excluded(name, left_out, structure)]
        if not matched:
            missed.append(pattern)
        for name, part in matched:
            hits.setdefault(name, set()).add(part)
    unforgiven = [pattern for pattern in missed if pattern not in optional or not hits]
    if unforgiven or not hits:
        raise _no_match((unforgiven or ["an empty list of patterns"])[0], modules, exclude, structure, common_structure)
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


def marked(pattern: str) -> str:
    """A plain common name in "@" writing."""
    if MARK in pattern or pattern.startswith("[r]"):
        return pattern
    return ".".join(element if element.isdigit() else f"{element}{MARK}" for element in pattern.split("."))


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
