"""Several methods in one delta, each at modules of its own: MAM adapters, UniPELT, MAD-X language adapters.

He et al. 2021, "Towards a Unified View of Parameter-Efficient Transfer Learning", https://arxiv.org/abs/2110.04366
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.engine.building import Like, complete_config
from deltahub.engine.insertion import Insertion
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError
from deltahub.handle.base import DeltaBase
from deltahub.handle.types import class_for

# Options of a part that only the whole delta has.
_WITH_PARTS: Final = ("fusion", "union")
_OF_THE_WHOLE: Final = ("unfrozen_modules", "backbone_class", "backbone_checkpoint_name", "backbone_hash", "strength")


@dataclass(frozen=True, kw_only=True)
class UnionConfig(DeltaConfig):
    """Options of a union: the configs of its parts.

    Args:
        parts: configs of other delta types, as configs or in their JSON form, at least one. Where a part acts is in its own
            `modified_modules` and `exclude_modules`; those of the union are not used.
    """

    parts: Sequence[Mapping[str, Any]] = ()

    delta_type: ClassVar[str] = "union"

    def __post_init__(self) -> None:
        kind = self.delta_type
        plain_parts = [_document(part) if isinstance(part, DeltaConfig) else part for part in self.parts]
        object.__setattr__(self, "parts", tuple(plain_parts))
        super().__post_init__()
        if not self.parts:
            msg = f"A {kind} has no parts; expected the config of at least one delta type, such as {{'delta_type': 'lora'}}."
            raise ConfigError(msg)
        if self.modified_modules or self.exclude_modules or self.layers_to_transform is not None:
            msg = f"A {kind} has no modules of its own. Give each part its modified_modules, exclude_modules and layers_to_transform."
            raise ConfigError(msg)
        parts = tuple(_part(part, kind)[1].to_dict() for part in self.parts)
        plain = ({key: value for key, value in part.items() if key not in _OF_THE_WHOLE} for part in parts)
        object.__setattr__(self, "parts", tuple(plain))


def _document(config: DeltaConfig) -> dict[str, Any]:
    """Return the JSON form of a part without options of the whole delta that are at their default."""
    defaults = DeltaConfig().to_dict()
    return {key: v for key, v in config.to_dict().items() if key not in _OF_THE_WHOLE or v != defaults.get(key)}


def without_whole(config: DeltaConfig) -> dict[str, Any]:
    """Return the JSON form of a config without the options that only a whole delta has."""
    return {key: value for key, value in config.to_dict().items() if key not in _OF_THE_WHOLE}


def _part(document: Mapping[str, Any], kind: str) -> tuple[type[DeltaBase], DeltaConfig]:
    """Return the class and the config of a part.

    Args:
        kind: the type of the whole delta.

    Raises:
        ConfigError: its delta type or an option is unknown, it has parts itself, or it has an option of the whole delta.
    """
    delta_type = document.get("delta_type")
    if not isinstance(delta_type, str) or delta_type in _WITH_PARTS:
        msg = f"A part of a {kind} has delta_type {delta_type!r}; expected another delta type, such as 'lora'."
        raise ConfigError(msg)
    if taken := next((key for key in _OF_THE_WHOLE if document.get(key)), None):
        msg = f"A part of a {kind} has the option {taken}, which belongs to the {kind}. Move it there."
        raise ConfigError(msg)
    cls: type[DeltaBase] = class_for(delta_type)
    return cls, cls.config_class.from_dict(document)


class UnionModel(DeltaBase):
    """A delta with several methods, which act at different modules and are trained, saved and switched as one.

    Args:
        backbone_model: the model to modify.
        parts: the configs of its methods, as configs or in their JSON form.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "union"
    config_class = UnionConfig
    default_exclude_modules = ()
    addresses_each = 2  # a part may address its modules in pairs, none of which can be left out

    def __init__(
        self,
        backbone_model: nn.Module,
        parts: Sequence[Mapping[str, Any] | DeltaConfig],
        unfrozen_modules: Sequence[str] | None = None,
        *,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = UnionConfig(parts=cast("Sequence[Mapping[str, Any]]", parts), unfrozen_modules=unfrozen_modules)
        super().__init__(backbone_model, config, name=name, dtype=dtype)

    @classmethod
    def plan(cls, backbone: nn.Module, config: UnionConfig) -> list[Target]:
        """Return the modules of all parts.

        Raises:
            ConfigError: two parts act on one module.
        """
        targets: dict[str, Target] = {}
        for method, part in parts_of(backbone, config):
            for target in method.plan(backbone, part):
                if target.name in targets:
                    raise _shared(target.name)
                targets[target.name] = target
        return list(targets.values())

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: UnionConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build the insertions of all parts."""
        left = {target.name for target in targets}
        insertions: dict[str, Insertion] = {}
        for method, part in parts_of(backbone, config):
            own = [target for target in method.plan(backbone, part) if target.name in left]
            for address, insertion in method.new_insertions(backbone, part, own, like).items():
                if address in insertions:
                    raise _shared(address)
                insertions[address] = insertion
        return insertions

    @classmethod
    def as_saved(cls, config: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
        """Return the config and the tensors with those of each part as that part saves them."""
        parts = []
        for method, part in (_part(part, config.delta_type) for part in config.parts):
            plain, tensors = method.as_saved(part, tensors)
            parts.append(plain)
        return replace(config, parts=tuple(parts)), tensors


def parts_of(backbone: nn.Module, config: UnionConfig) -> list[tuple[type[DeltaBase], DeltaConfig]]:
    """Return the class and the complete config of each part on a backbone."""
    parts = (_part(part, config.delta_type) for part in config.parts)
    return [(cls, complete_config(cls, part, backbone)) for cls, part in parts]


def _shared(module: str) -> ConfigError:
    where = module or "the model itself"
    return ConfigError(
        f"Two parts of a union act on {where}, which holds one. Add them as two deltas, or leave it out of one part."
    )
