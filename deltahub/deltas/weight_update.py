"""Updates of weights by a method of one's choice: LoHa, LoKr, OFT, BOFT, HRA, HiRA, RoAd, FourierFT and others.

y = (W + dW) x + b        dW depends on the method: see `deltahub.deltas.updates`, a file for each
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import deltahub.deltas.updates  # noqa: F401  (registers the methods)
from deltahub.checkpoint.address import Address
from deltahub.checkpoint.config import DeltaConfig, refuse_unknown
from deltahub.checkpoint.options import Text
from deltahub.deltas.target_checks import refuse_unmatched
from deltahub.deltas.updates.update import METHODS, WeightUpdate, weight_shape
from deltahub.engine.insertion import Insertion
from deltahub.engine.layers import update_fault, weight_fault
from deltahub.engine.shapes import linear_shape
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError, TargetError
from deltahub.handle.base import DeltaBase
from deltahub.text.suggestions import suggest


@dataclass(frozen=True, kw_only=True)
class WeightUpdateConfig(DeltaConfig):
    """Options of an update of weights: the method and its own options.

    Args:
        method: the name of the method.
        options: options of the method; those not given have its defaults.
        options_pattern: options of single modules, by real address, instead of `options`; the first address that matches a module counts.
    """

    method: Text = "loha"
    options: Mapping[str, bool | float] = field(default_factory=dict)
    options_pattern: Mapping[str, Mapping[str, bool | float]] = field(default_factory=dict)

    delta_type: ClassVar[str] = "weight_update"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            msg = (
                f"method is {self.method!r}, which is not a method of updating weights: {suggest(self.method, METHODS)}"
            )
            raise ConfigError(msg)
        defaults = METHODS[self.method].defaults
        for options in (self.options, *self.options_pattern.values()):
            refuse_unknown(options, set(defaults), self.method)
            for key, value in options.items():
                check_option(self.method, key, value, defaults[key])

    def to_dict(self) -> dict[str, Any]:
        """Return the delta type and every option, as JSON types."""
        document = super().to_dict()
        for key in ("options", "options_pattern"):
            document[key] = _plain(document[key])
        return document

    def options_of(self, module: str) -> dict[str, Any]:
        """Return the options of a module."""
        own = next((own for address, own in self.options_pattern.items() if _matches(address, module)), {})
        return {**METHODS[self.method].defaults, **self.options, **own}


def check_option(method: str, key: str, value: Any, default: Any) -> None:
    """Refuse an option whose value has another type than its default.

    Raises:
        ConfigError: the type is another one.
    """
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
        msg = f"The option {key} of {method} must be of type {type(default).__name__}, got {value!r}."
        raise ConfigError(msg)
    least = 1 if default > 0 else default
    if isinstance(default, int) and not isinstance(default, bool) and value < least:
        msg = f"The option {key} of {method} must be at least {least}, got {value}."
        raise ConfigError(msg)


def _plain(value: Any) -> Any:
    """Return mappings of mappings as dicts."""
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _matches(address: str, module: str) -> bool:
    return address == module or Address(address).matches(module)


class WeightUpdateModel(DeltaBase):
    """Updates of the weights of every addressed linear layer or convolution; by default of the q and v projections of self-attention.

    Args:
        backbone_model: the model to modify.
        method: the name of the method, such as ``"loha"`` or ``"oft"``.
        options: options of the method, such as ``{"r": 8}``.
        modified_modules: addresses of linear layers, Conv1D layers or convolutions.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        options_pattern: options of single modules, by real address, instead of `options`.
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "weight_update"
    config_class = WeightUpdateConfig
    default_modified_modules = ("attn@.q@", "attn@.v@")

    def __init__(
        self,
        backbone_model: nn.Module,
        method: str = "loha",
        options: Mapping[str, Any] | None = None,
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        *,
        options_pattern: Mapping[str, Mapping[str, Any]] | None = None,
        layers_to_transform: Sequence[int] | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = WeightUpdateConfig(
            method=method,
            options=dict(options or {}),
            options_pattern={address: dict(own) for address, own in (options_pattern or {}).items()},
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
            layers_to_transform=layers_to_transform,
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify)

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Check that each module is a linear layer or a convolution."""
        for target in targets:
            module = target.module
            if isinstance(module, _ConvNd):
                fault = weight_fault(module)
            else:
                linear_shape(target.name, module)
                fault = "it is an Embedding" if isinstance(module, nn.Embedding) else update_fault(module)
            if fault:
                msg = f"{target.name} ({type(module).__name__}) cannot hold an update of its weight: {fault}. Leave it out."
                raise TargetError(msg)
        return targets

    @classmethod
    def new_insertions(
        cls,
        backbone: nn.Module,
        config: WeightUpdateConfig,
        targets: Sequence[Target],
        like: Callable[[nn.Module], Tensor],
    ) -> Mapping[str, Insertion]:
        """Build an update for each target.

        Raises:
            NoMatchError: an address of `options_pattern` matches none of them.
        """
        names = [target.name for target in targets]
        refuse_unmatched(config.options_pattern, "options_pattern", names)
        return super().new_insertions(backbone, config, targets, like)

    @classmethod
    def new_insertion(cls, config: WeightUpdateConfig, target: Target, width: int, like: Tensor) -> WeightUpdate:
        """Build a new update for one layer, or for `width` rows of a fused one."""
        kind, module = METHODS[config.method], target.module
        if kind.reads_weight and (fault := weight_fault(module)):
            msg = f"{target.name} cannot hold the update {config.method}, which reads the layer's weight: {fault}. Leave it out."
            raise TargetError(msg)
        n_in = 0 if isinstance(module, _ConvNd) else linear_shape(target.name, module)[0]
        return kind(like, weight_shape(module, n_in, width), config.options_of(target.name))
