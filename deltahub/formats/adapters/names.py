"""Names in the files of `adapters` and in a backbone.

bert.encoder.layer.0.output.adapters.NAME.adapter_down.0.weight        a bottleneck
bert.encoder.layer.0.attention.self.query.loras.NAME.lora_A            a LoRA, or the vector of an IA3
bert.prefix_tuning.prefix_tunings.NAME.self_prefix.control_trans       a prefix, with a second name in every attention

A file has the names of the model that it was saved from, with or without a head; here all are relative to the base model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from deltahub.engine.modules import modules_by_name
from deltahub.engine.site import uncompiled
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.adapters.families import FAMILIES, Family
from deltahub.formats.adapters.fields import WAY_OUT

# marker: the name of the dictionary of adapters in their module
_KEY: Final = r"(?:(?P<module>.+)\.)?{marker}\.(?P<adapter>[^.]+)\.(?P<leaf>.+)"
Leaves = dict[str, dict[str, Tensor]]  # by module, by the last part of the name


@dataclass
class Backbone:
    """A model with its names relative to the base model.

    Attributes:
        model: the model.
        base: the prefix of the base model's names in it, with a dot; empty if it is the base model.
        base_prefix: the prefix of the base model's names in any model with a head, with a dot.
        modules: its modules, by name relative to the base model.
    """

    model: nn.Module
    base: str
    base_prefix: str
    modules: dict[str, nn.Module]

    @classmethod
    def of(cls, model: nn.Module) -> Backbone:
        """Collect the names in a backbone; its deltas do not count."""
        prefix = str(getattr(uncompiled(model), "base_model_prefix", "") or "")
        modules = modules_by_name(uncompiled(model))
        base = f"{prefix}." if prefix in modules and prefix else ""
        relative = {name.removeprefix(base): module for name, module in modules.items() if name.startswith(base)}
        return cls(model, base, f"{prefix}." if prefix else "", relative)

    @property
    def model_type(self) -> str:
        """The model type in the config, or the class of a model without one."""
        config = getattr(self.model, "config", None)
        return str(getattr(config, "model_type", None) or type(self.model).__name__)

    @property
    def width(self) -> int:
        """The size of the hidden state by its config, 0 if that does not say."""
        return int(getattr(getattr(self.model, "config", None), "hidden_size", 0) or 0)

    @property
    def family(self) -> Family:
        """The places that `adapters` has in this model.

        Raises:
            ConfigError: they are not known.
        """
        if self.model_type not in FAMILIES:
            msg = f"It is not known where adapters puts its modules in a {self.model_type}; it is for {', '.join(sorted(FAMILIES))}. {WAY_OUT}"
            raise ConfigError(msg)
        return FAMILIES[self.model_type]

    def relative(self, name: str) -> str:
        """Return a name of a file relative to the base model."""
        return name.removeprefix(self.base_prefix)

    def real(self, name: str) -> str:
        """Return the name in this model of a module of the base model."""
        return f"{self.base}{name}"

    def layers(self, pattern: str) -> list[int]:
        """Return the numbers of the layers that have a module.

        Args:
            pattern: a name with ``*`` for the number.
        """
        expression = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)", 1))
        return sorted(int(match[1]) for match in map(expression.fullmatch, self.modules) if match)

    def number(self, pattern: str, layer: int) -> int:
        """Return the number of a layer in the configs of `adapters`: those of a decoder follow those of the encoder."""
        return layer + (len(self.layers("encoder.block.*")) if pattern.startswith("decoder.") else 0)


def sorted_leaves(saved: Mapping[str, Tensor], marker: str, backbone: Backbone) -> tuple[Leaves, dict[str, Tensor]]:
    """Sort a file's tensors into those of adapters in their modules and the others.

    Args:
        marker: the name of the dictionary of adapters in their module.

    Returns:
        The adapter's tensors by module relative to the base model; the others by their relative name.

    Raises:
        CheckpointError: the file holds several adapters, or one tensor under two names.
    """
    leaves: Leaves = {}
    others: dict[str, Tensor] = {}
    adapters: set[str] = set()
    expression = re.compile(_KEY.format(marker=re.escape(marker)))
    for key, tensor in saved.items():
        name = backbone.relative(key)
        match = expression.fullmatch(name)
        place, leaf = (leaves.setdefault(match["module"] or "", {}), match["leaf"]) if match else (others, name)
        if leaf in place:
            raise CheckpointError(f"The adapter holds two tensors for {name}. Fetch it again.")
        place[leaf] = tensor
        adapters |= {match["adapter"]} if match else set()
    if len(adapters) > 1:
        msg = f"The file holds {len(adapters)} adapters: {', '.join(sorted(adapters)[:3])}. Save one of them alone."
        raise CheckpointError(msg)
    return leaves, others


def require_leaves(leaves: Mapping[str, Tensor], expected: Mapping[str, Any], module: str) -> None:
    """Refuse tensors of one module that are missing, unknown or of another shape.

    Args:
        expected: the shape of each; None leaves it open.

    Raises:
        CheckpointError: one is.
    """
    for leaf, shape in expected.items():
        if leaf not in leaves:
            raise CheckpointError(f"The adapter has no {leaf} for {module}. Fetch it again.")
        if shape is not None and tuple(leaves[leaf].shape) != tuple(shape):
            msg = (
                f"The adapter's {leaf} for {module} is {list(leaves[leaf].shape)}; expected {list(shape)}, by its config and this backbone. "
                "Load its own backbone, or fetch it again."
            )
            raise CheckpointError(msg)
    refuse_others({f"{module}: {leaf}": tensor for leaf, tensor in leaves.items() if leaf not in expected})


def refuse_others(others: Mapping[str, Tensor]) -> None:
    """Refuse tensors that no reader uses.

    Raises:
        CheckpointError: there is one.
    """
    if others:
        name = min(others)
        msg = f"The adapter holds {name} {list(others[name].shape)}, which is not part of what its config describes. {WAY_OUT}"
        raise CheckpointError(msg)


def require_places(found: set[str], expected: set[str]) -> None:
    """Refuse a file with tensors in other modules than its config names: `adapters` would make up those that are missing.

    Raises:
        CheckpointError: a module is missing or not expected.
    """
    if missing := sorted(expected - found):
        msg = f"The adapter has no tensors for {missing[0]} ({len(missing)} of {len(expected)} modules), where its config puts some. Load its own backbone, or fetch it again."
        raise CheckpointError(msg)
    if extra := sorted(found - expected):
        msg = f"The adapter has tensors for {extra[0]}, where its config puts none in this backbone. Load its own backbone, or fetch it again."
        raise CheckpointError(msg)
