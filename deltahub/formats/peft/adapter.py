"""The parts of a PEFT adapter, and helpers shared by the writers of all methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from deltahub.engine.structure.layouts import Part

MODEL: Final = "base_model.model."  # prefix of each backbone tensor's name
PROMPTED: Final = "base_model."  # the prefix beside a prompt: PEFT then wraps the backbone once, not twice


@dataclass
class Exported:
    """A PEFT adapter.

    Attributes:
        peft_type: PEFT's name of the method.
        options: config keys beyond those common to all methods.
        tensors: tensors by their names in the file.
        modules_to_save: modules of the backbone that the adapter replaces.
        needs_task: whether PEFT supports the method only with a task type.
    """

    peft_type: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]
    modules_to_save: list[str] = field(default_factory=list)
    needs_task: bool = False


def named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add PEFT's prefix to names of backbone tensors."""
    return {f"{MODEL}{name}": tensor for name, tensor in tensors.items()}


def by_part(leaves: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group the tensors on a fused layer by part."""
    parts: dict[str, dict[str, Tensor]] = {}
    for leaf, tensor in leaves.items():
        label, _, key = leaf.partition(".")
        parts.setdefault(label, {})[key] = tensor
    return parts


def whole_width(share: int, part: Part) -> int:
    """Compute the width of a whole layer from the width `share` of a part."""
    return share * part.of // (part.stop - part.start)
