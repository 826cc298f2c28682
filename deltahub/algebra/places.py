"""The places of a LoRA's updates: layers, parts of fused layers, parameters that a module reads itself, and the experts of a stack.

A stack of experts is a batch of matrices, each of which is a place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from deltahub.checkpoint.manifest import DELTA_PART
from deltahub.engine.structure.layouts import is_on_parameter

DOWN: Final = ".lora_A"
UP: Final = ".lora_B"
MAGNITUDE: Final = ".lora_magnitude_vector"
_STACK: Final = 3  # dimensions of the factors of a stack


@dataclass(frozen=True, order=True)
class Place:
    """One matrix that a LoRA updates.

    Attributes:
        stem: the names of its tensors without the last part.
        expert: the number of the matrix in a stack; -1 if it is not in one.
        address: the real name of the layer or of the parameter, by which the config gives ranks.
        part: the part of it, such as ``"q"``; empty for the whole.
    """

    stem: str
    expert: int
    address: str
    part: str = ""

    @classmethod
    def of(cls, stem: str, dimensions: int = 2, expert: int = -1) -> Place:
        """Build a place from the names of its tensors.

        Args:
            dimensions: those of its tensors, 3 for a stack.
        """
        module, _, leaf = f".{stem}.".partition(DELTA_PART)
        leaf, on_parameter = leaf.rstrip("."), is_on_parameter(f"{leaf}lora_A", dimensions)
        parameter, _, part = leaf.partition(".") if on_parameter else ("", "", leaf)
        return cls(stem, expert, f"{module.removeprefix('.')}.{parameter}".strip("."), part)

    @classmethod
    def at(cls, module: str) -> Place:
        """Build the place of a layer as a whole; the model itself has the name ``""``."""
        return cls.of(f"{module}{DELTA_PART}".strip("."))

    @property
    def name(self) -> str:
        """The address with the part, for people."""
        return f"{self.address}.{self.part}" if self.part else self.address

    @property
    def stream(self) -> str:
        """A text that differs for each place, from which random values are drawn."""
        return self.stem if self.expert < 0 else f"{self.stem}[{self.expert}]"


def places_of(stem: str, shape: tuple[int, ...]) -> list[Place]:
    """Return the places of the tensors with a stem: one, or one for each expert.

    Args:
        shape: that of one of them.
    """
    if len(shape) != _STACK:
        return [Place.of(stem)]
    return [Place.of(stem, _STACK, expert) for expert in range(shape[0])]
