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
from deltahub.algebra.places import DOWN, MAGNITUDE, UP, Place, places_of
from deltahub.checkpoint.address import rank_and_scale
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.default_name import backbone_name
from deltahub.checkpoint.manifest import DELTA_PART, TensorEntry
from deltahub.checkpoint.strength import without_strength
from deltahub.errors import CheckpointError, ConfigError

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
    def places(self) -> tuple[Place, ...]:
        """The places of a LoRA's updates, sorted."""
        ends = (MAGNITUDE, UP, DOWN)
        shapes = {
            name.removesuffix(end): entry.shape
            for end in ends
            for name, entry in self.own.items()
            if name.endswith(end)
        }
        return tuple(sorted(place for stem, shape in shapes.items() for place in places_of(stem, shape)))

    @property
    def shares_experts(self) -> bool | None:
        """Whether the experts of a stack share their factors; None if there is no stack."""
        if self.document.get("share_experts"):
            return True
        return False if any(place.expert >= 0 for place in self.places) else None

    @cached_property
    def _tensors(self) -> Any:
        return safe_open(self.file, "pt")  # maps the file; a page that was read can be dropped again

    def tensor(self, name: str, expert: int = -1) -> Tensor:
        """Read a tensor, or the values of one expert in it.

        Raises:
            CheckpointError: a value is not finite.
        """
        stored = self.stored_names.get(name, name)
        whole = expert < 0
        tensor: Tensor = self._tensors.get_tensor(stored) if whole else self._tensors.get_slice(stored)[expert]
        if not is_finite(tensor):
            msg = f"{name} of {self.label} holds values that are not finite. Train the delta again, or leave it out."
            raise CheckpointError(msg)
        return tensor

    def factors(self, place: Place) -> Factors:
        """Read the update at a place, with its scale in the upper factor, in float32 or wider.

        Raises:
            CheckpointError: a tensor is missing or does not fit the config.
        """
        rank, scale = rank_and_scale(self.document, place.address)
        names = (place.stem + UP, place.stem + DOWN)
        shapes = [self.own[name].shape if name in self.own else () for name in names]
        stack = shapes[1][:1] if place.expert >= 0 else ()
        expected = (stack, (rank,), (*stack, rank))
        if len(shapes[0]) < 2 or (shapes[0][:-2], shapes[0][-1:], shapes[1][:-1]) != expected:
            msg = (
                f"The factors of {self.label} at {place.name} are {list(shapes[0])} and {list(shapes[1])}; its config says rank {rank}. "
                "Fetch or save the delta again."
            )
            raise CheckpointError(msg)
        up, down = (self.tensor(name, place.expert) for name in names)
        wide = torch.promote_types(torch.promote_types(up.dtype, down.dtype), torch.float32)
        return Factors(up.double().mul_(scale) if scale != 1 else up.to(wide), down.to(wide))

    def dtype(self, place: Place) -> torch.dtype:
        """Return the precision for results at a place: float32, or float64 if the factors have it."""
        entries = [self.own[place.stem + end].dtype for end in (UP, DOWN) if place.stem + end in self.own]
        return torch.float64 if "F64" in entries else torch.float32


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
