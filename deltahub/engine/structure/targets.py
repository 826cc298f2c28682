"""The modules, or parts of modules, that addresses match: by real or by common names (`engine/structure/names.py`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from deltahub.checkpoint.address import ALL_LINEAR, REGEX_MARK, Address, lies_within, nearest_names
from deltahub.engine.structure.experts import named_experts
from deltahub.engine.structure.former_names import former_names
from deltahub.engine.structure.inference import describe_linear_layers
from deltahub.engine.structure.layouts import Part
from deltahub.engine.structure.linear_layers import linear_layers
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap, marked
from deltahub.engine.structure.projections import projection_names
from deltahub.errors import NoMatchError


@dataclass(frozen=True)
class Target:
    """A module that an address matches, or some of its parts.

    Attributes:
        name: its real name.
        module: the module.
        parts: the matched parts; empty for the whole module.
        stands_in: whether it is a mixture of experts, addressed as one of the layers for which it has no modules.
        parameter: the module's name for the parameter that the address means, such as ``"down_proj"``, or ``"dt_proj.weight"`` of a layer
            that the module does not call; empty for the module.
    """

    name: str
    module: nn.Module
    parts: tuple[Part, ...] = ()
    stands_in: bool = False
    parameter: str = ""

    @property
    def address(self) -> str:
        """The real name of the module, of the parameter, or of the layer in the module whose weight is meant."""
        parameter = self.parameter.removesuffix(".weight")
        return ".".join(filter(None, (self.name, parameter)))


def find_targets(
    backbone: nn.Module,
    patterns: Sequence[str],
    exclude: Sequence[str] = (),
    common_structure: bool | None = None,
    optional: Collection[str] = (),
) -> list[Target]:
    """Return the modules that addresses match, in backbone order.

    Args:
        patterns: addresses (`deltahub.checkpoint.address`) by real or common name, or by the real name of transformers 4.
        exclude: addresses of modules to leave out, with everything inside them.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        optional: patterns that may match nothing as long as another one matches: a method's defaults.

    Raises:
        NoMatchError: a pattern matches nothing; the message lists the nearest names.
    """
    return targets_in(StructureMap.of(backbone), patterns, exclude, common_structure, optional)


def targets_in(
    structure: StructureMap,
    patterns: Sequence[str],
    exclude: Sequence[str] = (),
    common_structure: bool | None = None,
    optional: Collection[str] = (),
    *,
    projections: bool = False,
    with_parameters: bool = False,
) -> list[Target]:
    """Return the modules that addresses match, as `find_targets` does, in a backbone whose structure is known.

    Args:
        projections: whether a pattern that matches no module may mean projections of `nn.MultiheadAttention`.
        with_parameters: whether an address that matches no module may match parameters, and the layers beside a mixture of experts.

    Raises:
        NoMatchError: a pattern matches nothing; the message lists the nearest names.
    """
    modules = {name: module for name, module in structure.modules.items() if name}
    hits: dict[str, set[Part | None]] = {}
    parameter_hits: dict[tuple[str, str], set[Part | None]] = {}
    left_out = [*exclude, *map(marked, exclude)]
    missed = []
    tails: dict[str, list[str]] = {}  # saves matching thousands of full names against thousands of modules
    for name in modules:
        tails.setdefault(name.rpartition(".")[2], []).append(name)
    for pattern in dict.fromkeys(patterns):
        ending = modules if pattern.startswith(REGEX_MARK) else tails.get(pattern.rpartition(".")[2], ())
        matched = _match_any(pattern, modules, structure, common_structure, ending, optional)
        if not matched and projections:
            matched = _projections(pattern, structure)
        matched = [(name, part) for name, part in matched if not _is_excluded(name, left_out, structure)]
        if not matched and with_parameters:
            for place, part in _match_parameters(pattern, structure, common_structure, left_out):
                parameter_hits.setdefault(place, set()).add(part)
                matched = [("", None)]
            if matched:
                continue
        if not matched and pattern not in optional:
            raise _no_match(pattern, modules, exclude, structure, common_structure)
        if not matched:
            missed.append(pattern)
        for name, part in matched:
            hits.setdefault(name, set()).add(part)
    if not hits and not parameter_hits:
        raise _no_match((missed or ["an empty list of patterns"])[0], modules, exclude, structure, common_structure)
    return _targets(structure, hits, parameter_hits)


def _targets(
    structure: StructureMap,
    hits: dict[str, set[Part | None]],
    parameter_hits: Mapping[tuple[str, str], set[Part | None]],
) -> list[Target]:
    """Return the matched modules in backbone order, then the matched parameters."""
    for (name, key), parts in parameter_hits.items():
        if not key:  # a layer, known by a name that only the search for parameters has
            hits.setdefault(name, set()).update(parts)
    modules, experts = structure.modules, structure.guess.experts
    targets = [_target(n, module, hits[n], n in experts) for n, module in modules.items() if n in hits]
    return targets + [_target(n, modules[n], parts, parameter=k) for (n, k), parts in parameter_hits.items() if k]


def _match_parameters(
    pattern: str, structure: StructureMap, common_structure: bool | None, left_out: Sequence[str]
) -> list[tuple[tuple[str, str], Part | None]]:
    """Return the parameters with two or three dimensions that a pattern matches by real name, else the parts of experts by common name."""
    address = Address(pattern)
    found: list[tuple[tuple[str, str], Part | None]] = []
    if not common_structure and MARK not in pattern:
        found = [
            ((name, key), None)
            for name, module in structure.modules.items()
            for key, parameter in module._parameters.items()
            if parameter is not None and parameter.dim() in (2, 3) and address.matches(f"{name}.{key}".lstrip("."))
        ]
    if not found and common_structure is not False:
        found = [
            ((named.module, named.parameter), named.part)
            for named in named_experts(structure)
            if address.matches(named.common) or (MARK not in pattern and _matches_plain(address, named.common))
        ]
    return [
        (place, part)
        for place, part in found
        if not _is_excluded(place[0], left_out, structure) and not lies_within(".".join(place), left_out)
    ]


def _match_any(
    pattern: str,
    modules: Mapping[str, nn.Module],
    structure: StructureMap,
    common_structure: bool | None,
    ending: Collection[str],
    optional: Collection[str],
) -> list[tuple[str, Part | None]]:
    """Return the modules, or parts of modules, that a pattern matches by real, common or former name, or by their kind."""
    if pattern == ALL_LINEAR:
        return [(name, None) for name in linear_layers(structure.modules[""], modules)]
    matched = _match(pattern, modules, structure, common_structure, ending)
    if not matched and pattern in optional and (undivided_pattern := undivided(pattern)):
        matched = _match(undivided_pattern, modules, structure, common_structure)
    if matched or common_structure or MARK in pattern:
        return matched
    former = former_names(structure.modules[""], modules).items()
    return [(name, None) for name, old in former if Address(pattern).matches(old)]


def matches(
    name: str, patterns: Iterable[str], exclude: Sequence[str], structure: StructureMap, common_structure: bool | None
) -> bool:
    """Return whether the name of a module matches one of the patterns, and is not excluded."""
    if _is_excluded(name, [*exclude, *map(marked, exclude)], structure):
        return False
    return any(_match(pattern, [name], structure, common_structure) for pattern in patterns)


def _projections(pattern: str, structure: StructureMap) -> list[tuple[str, Part | None]]:
    """Return the projections of `nn.MultiheadAttention` that a pattern matches by real or common name."""
    address = Address(pattern)
    return [
        (name, part)
        for name, module in structure.modules.items()
        if isinstance(module, nn.MultiheadAttention)
        for projection, part in projection_names(name, tuple(common for common, _ in structure.variants(name)))
        if address.matches(projection) or (MARK not in pattern and _matches_plain(address, projection))
    ]


def undivided(pattern: str) -> str | None:
    """Return the name of the fused layer with unknown parts that a default pattern for q or v falls back to, else None."""
    head, dot, last = pattern.rpartition(".")
    return f"{head}{dot}qkv{MARK}" if last in {f"q{MARK}", f"v{MARK}"} else None


def _target(
    name: str, module: nn.Module, hits: set[Part | None], stands_in: bool = False, parameter: str = ""
) -> Target:
    parts = () if None in hits else tuple(sorted((p for p in hits if p), key=lambda part: part.start))
    return Target(name, module, parts, stands_in, parameter)


def without_excluded(structure: StructureMap, targets: Sequence[Target], exclude: Sequence[str]) -> list[Target]:
    """Drop the targets that `exclude` matches: a method may have chosen layers inside the addressed modules.

    Raises:
        NoMatchError: none is left.
    """
    left_out = [*exclude, *map(marked, exclude)]
    remaining_targets = [target for target in targets if not _is_excluded(target.name, left_out, structure)]
    if targets and not remaining_targets:
        raise NoMatchError(targets[0].name, (), f"All that it means is left out by exclude_modules={list(exclude)}.")
    return remaining_targets


def _is_excluded(name: str, patterns: Sequence[str], structure: StructureMap) -> bool:
    return lies_within(name, patterns) or lies_within(structure.common_name(name), patterns)


def _match(
    pattern: str,
    names: Collection[str],
    structure: StructureMap,
    common_structure: bool | None,
    ending: Collection[str] | None = None,
) -> list[tuple[str, Part | None]]:
    """Return the modules, or parts of modules, that a pattern matches.

    Args:
        ending: the names that can end like the pattern, if known; only these are checked as real names.
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
    """Return whether a pattern without "@" matches a common name whose last element is common, not only earlier ones."""
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
    if pattern == ALL_LINEAR:
        return NoMatchError(
            pattern, (), "The backbone has no linear layer beside its head that exclude_modules does not leave out."
        )
    hint = ""
    if common_structure is not False:
        commons += [named.common.replace(MARK, "") for named in named_experts(structure) if named.parameter]
    near = nearest_names(pattern.replace(MARK, ""), [*modules, *commons])
    if _match_parameters(pattern, structure, common_structure, ()):
        hint = "It means parameters that a module reads itself, and only a LoRA acts on such."
    elif (MARK in pattern or common_structure) and not structure.roots:
        hint = (
            f"It is a common name, and no part of this backbone is certain to be it. {describe_linear_layers(modules, structure.guess)} "
            "Pass modified_modules with real names; `deltahub inspect` shows them all."
        )
    return NoMatchError(pattern, near, hint)
