"""A delta as an operand: its config, its record of the backbone, and its tensors one at a time.

Tensors are read from the mapped file as they are needed, so the memory for an operand is never more than its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from deltahub.algebra.factors import Factors, is_finite
from deltahub.checkpoint.address import rank_and_scale
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.default_name import backbone_name
from deltahub.checkpoint.manifest import DELTA_PART, TensorEntry
from deltahub.checkpoint.strength import without_strength
from deltahub.engine.structure.layouts import is_on_parameter
from deltahub.errors import CheckpointError, ConfigError

DOWN: Final = ".lora_A"
UP: Final = ".lora_B"
MAGNITUDE: Final = ".lora_magnitude_vector"
_FLOATS: Final = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Operand:
    """A delta to compute with.

    Attributes:
        label: the folder or reference as given, for messages.
        document: its config.
        fingerprint: its record of the backbone; None if it has none.
        parent: its digest, and its name if it was pulled, for the `parents` of the result.
        file: its safetensors file.
        table: its tensors by name.
        stored_names: names in `table` to those in the file, where they differ.
    """

    label: str
    document: Mapping[str, Any]
    fingerprint: Fingerprint | None
    parent: Mapping[str, str]
    file: Path
    table: Mapping[str, TensorEntry]
    stored_names: Mapping[str, str]

    @property
    def delta_type(self) -> str:
        """The method, e.g. ``"lora"``."""
        return str(self.document["delta_type"])

    @property
    def base(self) -> str:
        """The name of the backbone; empty if unknown."""
        return backbone_name(self.document)

    @cached_property
    def own(self) -> dict[str, TensorEntry]:
        """The delta's own parameters, by name."""
        return {name: entry for name, entry in self.table.items() if DELTA_PART in f".{name}"}

    @cached_property
    def trained(self) -> dict[str, TensorEntry]:
        """The tensors of the backbone that were trained as a whole, by name."""
        return {name: entry for name, entry in self.table.items() if name not in self.own}

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The places of a LoRA's updates: names of its tensors without the last part, sorted."""
        ends = (DOWN, UP, MAGNITUDE)
        return tuple(sorted({name.removesuffix(end) for name in self.own for end in ends if name.endswith(end)}))

    @cached_property
    def _tensors(self) -> Any:
        return safe_open(self.file, "pt")  # maps the file; a page that was read can be dropped again

    def tensor(self, name: str) -> Tensor:
        """Read a tensor.

        Raises:
            CheckpointError: a value is not finite.
        """
        tensor: Tensor = self._tensors.get_tensor(self.stored_names.get(name, name))
        if not is_finite(tensor):
            msg = f"{name} of {self.label} holds values that are not finite. Train the delta again, or leave it out."
            raise CheckpointError(msg)
        return tensor

    def factors(self, place: str) -> Factors:
        """Read the update at a place, with its scale in the upper factor, in float32 or wider.

        Raises:
            CheckpointError: a tensor is missing or does not fit the config.
            ConfigError: the update is of a parameter that a module reads itself.
        """
        rank, scale = self._sizes(place)
        entry = self.own.get(place + DOWN)
        if entry is not None and is_on_parameter(f"{part_of(place)}{DOWN}".lstrip("."), len(entry.shape)):
            msg = (
                f"{self.label} is a LoRA on parameters that their modules read themselves, such as {module_of(place)}.{part_of(place)}, with "
                "which deltas are not computed. Load it, and detach, merge or scale it there."
            )
            raise ConfigError(msg)
        shapes = [self.own[place + end].shape if place + end in self.own else None for end in (UP, DOWN)]
        if shapes[0] is None or shapes[1] is None or (shapes[0][1:], shapes[1][:1]) != ((rank,), (rank,)):
            msg = (
                f"The factors of {self.label} at {module_of(place)} are {shapes[0] and list(shapes[0])} and "
                f"{shapes[1] and list(shapes[1])}; its config says rank {rank}. Fetch or save the delta again."
            )
            raise CheckpointError(msg)
        up, down = self.tensor(place + UP), self.tensor(place + DOWN)
        wide = torch.promote_types(torch.promote_types(up.dtype, down.dtype), torch.float32)
        return Factors(up.double().mul_(scale) if scale != 1 else up.to(wide), down.to(wide))

    def dtype(self, place: str) -> torch.dtype:
        """Return the precision for results at a place: float32, or float64 if the factors have it."""
        entries = [self.own[place + end].dtype for end in (UP, DOWN) if place + end in self.own]
        return torch.float64 if "F64" in entries else torch.float32

    def _sizes(self, place: str) -> tuple[int, float]:
        """Return the rank and the factor at a place, by the config."""
        return rank_and_scale(self.document, module_of(place))


def module_of(place: str) -> str:
    """Return the name of the module at a place; parts of one fused layer have the same."""
    return f".{place}.".partition(DELTA_PART)[0].removeprefix(".")


def part_of(place: str) -> str:
    """Return the part of a fused layer at a place, such as ``"q"``; empty for a whole layer."""
    return f".{place}.".partition(DELTA_PART)[2].rstrip(".")


def computable(operand: Operand) -> Operand:
    """Return a delta whose parameters give its update: of floats, with its strength in its alphas.

    Raises:
        CheckpointError: a parameter is not a floating-point number.
        ConfigError: the method keeps flags beside its numbers, or has a strength that is not in its parameters.
    """
    _require_floats(operand)
    return replace(operand, document=without_strength(operand.document))


def _require_floats(operand: Operand) -> None:
    """Refuse a delta with parameters that are not floating-point numbers.

    Raises:
        CheckpointError: there is one; the message names it.
        ConfigError: the method keeps flags beside its numbers.
    """
    if odd := next((entry for entry in operand.own.values() if entry.dtype not in _FLOATS), None):
        if odd.dtype == "BOOL":  # the directions that an AdaLoRA keeps
            msg = (
                f"{operand.label} is a delta of the type {operand.delta_type}, with which deltas are not computed. Convert it to a LoRA first: "
                "deltahub convert DELTA TO --format deltahub --as-lora RANK --backbone BACKBONE"
            )
            raise ConfigError(msg)
        msg = f"{operand.label} holds {odd.name} as {odd.dtype}; expected floats. Fetch or save the delta again."
        raise CheckpointError(msg)


def refuse_more_than_factors(operand: Operand, operation: str) -> None:
    """Refuse a LoRA that is more than its factors: a DoRA, whose update depends on the weight that it changes, or one with biases of B.

    Raises:
        ConfigError: the delta is such a LoRA.
    """
    if operand.document.get("use_bias"):
        msg = f"{operand.label} is a LoRA with biases of B (use_bias), which cannot be {operation}. Train it without them, or load it as it is."
        raise ConfigError(msg)
    if operand.document.get("use_dora"):
        msg = (
            f"{operand.label} is a DoRA: its update depends on the weights of the backbone, so it cannot be {operation} by itself. "
            "Merge it into a copy of the backbone (delta.merge()), save both models, and take a LoRA from them: "
            "deltahub extract BASE MERGED --rank R --to DIR"
        )
        raise ConfigError(msg)
