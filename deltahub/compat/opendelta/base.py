"""The methods of OpenDelta's DeltaBase that DeltaHub's does not have, and the delta models with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, NoReturn, Self, cast

from torch import nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.compat.opendelta.configs import CONFIGS, METHODS, with_methods
from deltahub.compat.opendelta.counting import num_total_parameters, num_trainable_parameters
from deltahub.compat.opendelta.inserted import InsertedModule, put
from deltahub.engine.ledger import ledger_holding
from deltahub.engine.modules import module_at
from deltahub.engine.structure.names import StructureMap
from deltahub.engine.structure.targets import matches
from deltahub.errors import CheckpointError, ConfigError, NoMatchError
from deltahub.handle import base
from deltahub.log import LOGGER


def _refused(method: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *args: Any, **options: Any) -> NoReturn:
        """Refuse the call: a delta is built whole from its config, which names the alternative."""
        msg = (
            f"{method} has no meaning in DeltaHub. A delta is built whole from its config, so that it can be saved and loaded. Pass "
            "modified_modules to the class, or write a method of your own with new_insertion (docs/extending.md)."
        )
        raise ConfigError(msg)

    return refuse


class DeltaBase(base.DeltaBase):
    """A delta with OpenDelta's methods."""

    def __init__(self, backbone_model: nn.Module, config: DeltaConfig, **options: Any) -> None:
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        super().__init__(backbone_model, self.config_class(**values), **options)

    @classmethod
    def _class_for(cls, delta_type: str, package: str | None) -> type[Self]:
        known_class = super()._class_for(delta_type, package)
        return known_class if cls.delta_type else cast("type[Self]", MODELS.get(delta_type, known_class))

    # ----- parameters -----

    def trainable_parameters_names(self, module: nn.Module | None = None) -> list[str]:
        """Return the names of the trainable parameters of a module, by default of the backbone."""
        return [name for name, p in (module or self.backbone_model).named_parameters() if p.requires_grad]

    def frozen_parameters_names(self, module: nn.Module | None = None) -> list[str]:
        """Return the names of the frozen parameters of a module, by default of the backbone."""
        return [name for name, p in (module or self.backbone_model).named_parameters() if not p.requires_grad]

    def trainable_parameters(self, module: nn.Module | None = None) -> list[nn.Parameter]:
        """Return the trainable parameters of a module, by default of the delta alone."""
        return [p for p in (module or self).parameters() if p.requires_grad]

    def num_trainable_parameters(self, module: nn.Module | None = None) -> int:
        """Count the trainable numbers in a module, by default in the delta alone."""
        return num_trainable_parameters(module or self)

    def num_total_parameters(self, module: nn.Module | None = None) -> int:
        """Count the numbers in a module's parameters, by default in the delta's alone."""
        return num_total_parameters(module or self)

    def mark_as_delta(self, module: nn.Module | None = None) -> None:
        """Set `_is_delta` on the parameters of the delta, or of a part of it; DeltaHub itself does not read it.

        Raises:
            ConfigError: the module has parameters of the backbone, which would be frozen and not saved all the same.
        """
        own_ids = {id(parameter) for parameter in self.parameters()}
        parameters = list((module or self).parameters())
        if any(id(parameter) not in own_ids for parameter in parameters):
            msg = "mark_as_delta takes a part of the delta. To train modules of the backbone too, name them in unfrozen_modules."
            raise ConfigError(msg)
        for parameter in parameters:
            parameter._is_delta = True  # type: ignore[attr-defined]

    # ----- freezing -----

    def freeze_module(
        self, module: nn.Module | None = None, exclude: Sequence[str] | None = None, set_state_dict: bool = True
    ) -> None:
        """Freeze everything except the named parameters, as DeltaHub does; a name that matches nothing is passed over with a warning."""
        names = list((self.config.unfrozen_modules if exclude is None else exclude) or ())
        unmatched: list[str] = []
        while True:
            try:
                super().freeze_module(module, names, set_state_dict)
            except NoMatchError as error:  # raised before anything changes
                unmatched.append(error.pattern)
                names = [name for name in names if name != error.pattern]
            else:
                break
        if unmatched:
            LOGGER.warning(
                "These unfrozen_modules match nothing, so nothing is trained for them: %s", ", ".join(unmatched)
            )

    def set_active_state_dict(self, module: nn.Module | None = None) -> None:
        """Make `state_dict()` of the backbone leave out what is frozen, as `freeze_module` does.

        Raises:
            ConfigError: `module` is not the backbone.
        """
        if module is not None and module is not self.backbone_model:
            msg = "set_active_state_dict takes the backbone, whose state_dict() leaves out what is frozen. Filter that of a part by its names."
            raise ConfigError(msg)
        ledger = ledger_holding(self.backbone_model, self._entry)
        ledger.only_trainable = ledger.filter_asked = True

    # ----- modules -----

    def find_key(self, key: str, target_list: Iterable[str]) -> bool:
        """Return whether the name of a module matches one of the addresses, as for `modified_modules` of this delta."""
        structure = StructureMap.of(self.backbone_model)
        excluded = self.config.exclude_modules or ()
        return matches(key, target_list, excluded, structure, self.config.common_structure)

    def find_module(self, root_module: nn.Module, key: str) -> tuple[nn.Module, str, nn.Module]:
        """Return the parent of a module, the module's name in it, and the module.

        Raises:
            AttributeError: there is no such module.
        """
        parent, _, name = key.rpartition(".")
        return module_at(root_module, parent), name, module_at(root_module, key)

    def insert_module(
        self,
        module: nn.Module,
        method: str = "sequential",
        delta_module: nn.Module | None = None,
        delta_name: str = "delta",
        strict: bool = False,
        _delta_info: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a module of your own to this delta in memory; the delta can then not be saved.

        Args:
            module: the module of the backbone to put it on.
            method: ``"sequential"`` (pre_forward before and post_forward after), ``"before"``, ``"after"``, or ``"parallel"``
                (the sum of both outputs).
            delta_module: the module to add.
            delta_name: kept for OpenDelta's signature; its parameters are named after this delta.
            strict: whether to refuse a module that holds a delta already.

        Raises:
            ConfigError: the method is unknown, the module would never act, or this delta acts on `module` already.
            AddressError: `module` is not part of the backbone, or cannot hold a delta.
        """
        if _delta_info is not None:
            msg = "_delta_info describes an insertion of OpenDelta. Pass delta_module, and use attach() to activate a delta again."
            raise ConfigError(msg)
        self.check_places()
        put(self.backbone_model, self._entry, module, InsertedModule(delta_module, method), strict=strict)

    def insert_sequential_module(self, module: nn.Module, *args: Any, **options: Any) -> None:
        """Call `insert_module` with the method ``"sequential"``."""
        self.insert_module(module, "sequential", *args, **options)

    def insert_parallel_module(self, module: nn.Module, *args: Any, **options: Any) -> None:
        """Call `insert_module` with the method ``"parallel"``."""
        self.insert_module(module, "parallel", *args, **options)

    add_all_delta_to_backbone = _refused("add_all_delta_to_backbone")
    update_module = _refused("update_module")
    modify_module = _refused("modify_module")
    replace_module = _refused("replace_module")

    # ----- saving -----

    def create_config_from_model(self) -> None:
        """Do nothing: `config` always describes the delta."""

    def save_finetuned(self, *args: Any, **options: Any) -> None:
        """Save the delta as a folder: see DeltaHub's method.

        Raises:
            CheckpointError: it has modules by `insert_module`, which no config describes.
        """
        added = [name for name, insertion in self.insertions.items() if isinstance(insertion, InsertedModule)]
        if added:
            msg = (
                f"The module that insert_module put on {added[0]} cannot be saved: no config describes how to make it again. Use "
                "save_checkpoint and load_checkpoint for the tensors, or write a method of your own (docs/extending.md)."
            )
            raise CheckpointError(msg)
        super().save_finetuned(*args, **options)


MODELS: Final = {
    method: with_methods(DeltaBase, f"{name}Model", __name__, config_class=CONFIGS[method])
    for method, name in METHODS.items()
}
globals().update({model_class.__name__: model_class for model_class in MODELS.values()})
