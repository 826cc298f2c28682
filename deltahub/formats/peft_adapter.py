"""What an adapter of PEFT is made of, and what every way of making one needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from deltahub.engine.structure.layouts import Part

MODEL: Final = "base_model.model."  # before the name of each tensor of the backbone
PROMPTED: Final = "base_model."  # the same beside a prompt, for which PEFT wraps the backbone once, not twice


@dataclass
class Exported:
    """An adapter.

    Attributes:
        peft_type: what PEFT calls the method.
        options: keys of its config beyond those that all methods have.
        tensors: by the names in the file.
        modules_to_save: modules of the backbone that it replaces.
        needs_task: whether PEFT applies the method only by task.
    """

    peft_type: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]
    modules_to_save: list[str] = field(default_factory=list)
    needs_task: bool = False


def named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as the file names them, given as the backbone does."""
    return {f"{MODEL}{name}": tensor for name, tensor in tensors.items()}


def by_part(leaves: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors on a fused layer by part."""
    parts: dict[str, dict[str, Tensor]] = {}
    for leaf, tensor in leaves.items():
        label, _, key = leaf.partition(".")
        parts.setdefault(label, {})[key] = tensor
    return parts


def whole_width(share: int, part: Part) -> int:
    """The width of a layer one of whose parts has the width `share`."""
    return share * part.of // (part.stop - part.start)
