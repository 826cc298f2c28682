"""Common structure: one name for the same part of every architecture.

    encoder.layer.0.attention.self.query    BERT          encoder.block.0.attn.q
    h.0.attn.c_attn                         GPT-2         decoder.block.0.attn.q,k,v    (one module, three parts)

The main families have explicit maps (`engine/structure/maps.py`), found by class name anywhere inside a backbone; other names
are inferred from the modules (`engine/structure/inference.py`). Common names are written plain (`attn.q`) or as in OpenDelta,
with an "@" after each mapped element (`attn@.q@`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from deltahub.engine.modules import modules_by_name
from deltahub.engine.structure.inference import Inferred, infer
from deltahub.engine.structure.layouts import Part, adjacent_parts
from deltahub.engine.structure.maps import MARK, NameTree, explicit_map


def marked(pattern: str) -> str:
    """Return a plain common name in "@" notation."""
    if MARK in pattern or pattern.startswith("[r]"):
        return pattern
    return ".".join(element if element.isdigit() else f"{element}{MARK}" for element in pattern.split("."))


@dataclass(frozen=True)
class StructureMap:
    """The common names of a backbone.

    Attributes:
        roots: prefix of each module that has an explicit map (``""`` or ``"bert."``), with the tables of that map.
        guess: the names inferred for the modules outside them.
        modules: the backbone's modules by name (`engine/modules.py`).
        cached_variants: the common names that were looked up before, by real name.
    """

    roots: tuple[tuple[str, tuple[NameTree, NameTree]], ...] = ()
    guess: Inferred = field(default_factory=Inferred)
    modules: Mapping[str, nn.Module] = field(default_factory=dict, compare=False, repr=False)
    cached_variants: dict[str, tuple[tuple[str, Part | None], ...]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def inferred(self) -> bool:
        """Whether at least some names were inferred from the modules rather than taken from a map."""
        return bool(self.guess.names)

    @classmethod
    def of(cls, backbone: nn.Module) -> StructureMap:
        """Find the maps for the modules inside `backbone`, and infer the names of the rest."""
        modules = modules_by_name(backbone)
        roots, rest = [], {}
        inside = None
        for name, module in modules.items():
            if inside is not None and name.startswith(inside):
                continue
            table = explicit_map(type(module))
            if table is None:
                rest[name] = module
            else:
                inside = f"{name}." if name else ""
                roots.append((inside, table))
        return cls(tuple(roots), infer(rest), modules)

    def common_name(self, name: str) -> str:
        """Return the common name of a module in "@" notation, or its own name if no map has it."""
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
        """Return the common name of a module's group, e.g. ``ff@`` for OPT's fc1 and fc2, or None."""
        for prefix, (_, groups) in self.roots:
            if name.startswith(prefix):
                common, covered = groups.deepest(name[len(prefix) :])
                if covered == name[len(prefix) :].count(".") + 1:
                    return prefix + common
        return self.guess.groups.get(name)

    def variants(self, name: str) -> tuple[tuple[str, Part | None], ...]:
        """Return every common name of a module: its own, its group's, its aliases, and those of its parts if it is fused."""
        variants = self.cached_variants.get(name)
        if variants is None:
            variants = self.cached_variants[name] = tuple(self._variants(name))
        return variants

    def _variants(self, name: str) -> Iterator[tuple[str, Part | None]]:
        common = self._looked_up(name)
        yield common, None
        if group := self.group_name(name):
            yield group, None
        for alias in self.guess.aliases.get(name, ()):
            yield alias, None
        head, _, last = common.rpartition(".")
        parts = self.guess.parts.get(name) or (adjacent_parts(last.removesuffix(MARK)) if "," in last else ())
        for part in parts:
            yield f"{head}.{part.label}{MARK}", part


CommonStructureMap = StructureMap  # its name in OpenDelta
