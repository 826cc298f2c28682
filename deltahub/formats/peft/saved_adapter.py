"""An adapter as the readers of the methods see it, and the delta that they make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deltahub.engine.layers import reading_fault
from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.weights import is_turned
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.peft.expert_names import ExpertPlace
from deltahub.formats.peft.saved_modules import own_values
from deltahub.formats.peft.tensor_names import Leaves, Names


@dataclass
class Converted:
    """A delta's options and tensors.

    Attributes:
        options: `delta_type` and the options of the type.
        tensors: the delta's own tensors.
        replaced: tensors of the backbone that the delta replaces, by name in the backbone.
    """

    options: dict[str, Any]
    tensors: dict[str, Tensor]
    replaced: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class SavedAdapter:
    """A PEFT adapter on a backbone.

    Attributes:
        config: PEFT's config.
        leaves: the method's tensors by plain name of the module, empty for those of no module, and by their own name.
        names: the names in the backbone.
        alone: new weights of single modules whose weight is shared in the backbone, by plain name of the module.
        rows: trained rows of embeddings, by plain name of the module.
        experts: the method's tensors for layers that are parts of a parameter now, by their own name.
    """

    config: Mapping[str, Any]
    leaves: Leaves
    names: Names
    alone: Mapping[str, Tensor]
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    experts: Mapping[ExpertPlace, Mapping[str, Tensor]] = field(default_factory=dict)

    @cached_property
    def modules(self) -> list[str]:
        """Plain names of the modules with tensors of the method, sorted."""
        return sorted({module for module, _ in self.leaves if module})

    @cached_property
    def _own_values(self) -> dict[str, Tensor]:
        return own_values(self.names.backbone)

    def spelled(self, name: str) -> str:
        """Return the name of a module or tensor as patterns of the config match it."""
        return self.names.body.there(name)

    def layer(self, module: str) -> nn.Module:
        """Return a module of the backbone."""
        return self.names.modules[module]

    def get(self, module: str, leaf: str) -> Tensor | None:
        """Return a tensor of the method, or None."""
        return self.leaves.get((module, leaf))

    def leaf(self, module: str, leaf: str) -> Tensor:
        """Return a tensor of the method.

        Raises:
            CheckpointError: it is missing.
        """
        tensor = self.get(module, leaf)
        if tensor is None:
            place = f" for {module}" if module else ""
            msg = f"The adapter's file has no {leaf}{place}. Fetch it again."
            raise CheckpointError(msg)
        return tensor

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the shape of a layer's weight as ``(n_out, n_in)``, or that of a convolution's kernel.

        Raises:
            ConfigError: the layer has no such weight.
        """
        weight, coded = getattr(self.layer(module), "weight", None), quantised(self.layer(module))
        has_shape = isinstance(weight, Tensor) and (weight.dim() == 2 or isinstance(self.layer(module), _ConvNd))
        if coded is None and not has_shape:
            msg = f"The adapter acts on {module}, a {type(self.layer(module)).__name__}, where a delta has no such update. Load it with PEFT."
            raise ConfigError(msg)
        shape = tuple(cast("Tensor", weight).shape) if coded is None else coded.shape
        return (shape[1], shape[0]) if is_turned(self.layer(module)) else shape

    def widths(self, module: str) -> tuple[int, int]:
        """Return the widths of a linear layer, ``(n_in, n_out)``.

        Raises:
            ConfigError: it is another kind of layer.
        """
        shape = self.shape(module)
        if len(shape) != 2:
            msg = f"The adapter acts on {module}, a {type(self.layer(module)).__name__}; expected a linear layer for this method. Load it with PEFT."
            raise ConfigError(msg)
        return shape[1], shape[0]

    def value(self, name: str) -> Tensor | None:
        """Return the backbone's own value of a tensor by its plain name, or None."""
        return self._own_values.get(self.names.tensors.get(name, ""))

    def weight(self, module: str) -> Tensor:
        """Return the backbone's own weight of a layer in float32 or wider: ``(n_out, n_in)``, flat for a convolution.

        Raises:
            ConfigError: its values cannot be read.
        """
        layer = self.layer(module)
        coded = quantised(layer)
        fault = reading_fault(layer)
        value = self.value(f"{module}.weight") if coded is None else None if fault else coded.values()
        if fault or value is None:
            msg = (
                f"The adapter's update of {module} depends on the layer's weight: {fault or 'it has no weight'}. Load it on a backbone with "
                "plain weights."
            )
            raise ConfigError(msg)
        value = value.detach().cpu()
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        return value.T if is_turned(layer) else value.flatten(1)

    def bias(self, module: str) -> Tensor | None:
        """Return the backbone's own bias of a layer in float32 or wider, or None."""
        value = self.value(f"{module}.bias")
        return None if value is None else value.detach().cpu().to(torch.promote_types(value.dtype, torch.float32))
