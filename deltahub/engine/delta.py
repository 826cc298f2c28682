"""DeltaBase: the handle of one delta on one backbone.

A handle is no module: the parameters it speaks of live in the backbone, each in the `deltas` child of the module it
acts on. `deltas_of(backbone)` finds the handles again, on the backbone or on any copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from deltahub.config import DeltaConfig
from deltahub.engine import freezing, statistics
from deltahub.engine.fused import FusedInsertion
from deltahub.engine.ledger import Entry, Ledger, check_name, entries_of, ledger_of
from deltahub.engine.shapes import output_widths
from deltahub.engine.site import CHILD, Insertion, check_target, insert, site_of
from deltahub.engine.structure import Target, find_targets
from deltahub.errors import ConfigError
from deltahub.saveload import SaveLoadMixin

_TYPES: dict[str, type[DeltaBase]] = {}


class DeltaBase(SaveLoadMixin):
    """What all delta types share; subclass it with a config class and `new_insertion` to make another.

    Args:
        backbone_model: the model to modify. Its own parameters keep their names, values and places.
        config: where the delta sits and how it is made.
        name: the delta's name on this backbone; by default its type, and a number if that is taken.
        interactive_modify: kept for OpenDelta's signature; only False.
        backend: kept for OpenDelta's signature; only ``"hf"``.
        insertions: ready insertions by module name, instead of fresh ones.

    Raises:
        NoMatchError: an address matches nothing.
        TargetError: a module cannot hold this delta.
        ConfigError: an option can never work.
    """

    delta_type: ClassVar[str] = ""
    config_class: ClassVar[type[DeltaConfig]] = DeltaConfig
    default_modified_modules: ClassVar[tuple[str, ...]] = ()
    default_exclude_modules: ClassVar[tuple[str, ...]] = ("lm_head",)
    default_unfrozen_modules: ClassVar[tuple[str, ...]] = ("deltas",)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.delta_type:
            _TYPES.setdefault(cls.delta_type, cls)

    def __init__(
        self,
        backbone_model: nn.Module,
        config: DeltaConfig,
        *,
        name: str | None = None,
        interactive_modify: bool | int = False,
        backend: str = "hf",
        insertions: Mapping[str, Insertion] | None = None,
    ) -> None:
        _refuse(interactive_modify, backend)
        config = self.complete(config, backbone_model)
        if insertions is None:
            insertions = self.build(backbone_model, config)
        if name is not None:
            check_name(backbone_model, name)
        ledger = ledger_of(backbone_model)
        name = name or ledger.free_name(self.delta_type)
        self.backbone_model = backbone_model
        self._entry = Entry(name, type(self), config, dict(insertions))
        for address, insertion in insertions.items():
            insert(backbone_model.get_submodule(address), name, insertion)
        ledger.entries[name] = self._entry
        _reset_compiler(backbone_model)

    # ----- making -----

    @classmethod
    def complete(cls, config: DeltaConfig, backbone: nn.Module) -> DeltaConfig:
        """The config with this method's defaults and the backbone's name filled in."""
        origin = str(getattr(getattr(backbone, "config", None), "_name_or_path", "") or "")
        return replace(
            config,
            modified_modules=cls.default_modified_modules
            if config.modified_modules is None
            else config.modified_modules,
            exclude_modules=cls.default_exclude_modules if config.exclude_modules is None else config.exclude_modules,
            unfrozen_modules=cls.default_unfrozen_modules
            if config.unfrozen_modules is None
            else config.unfrozen_modules,
            backbone_class=config.backbone_class or type(backbone).__name__,
            backbone_checkpoint_name=config.backbone_checkpoint_name or origin.rstrip("/").rpartition("/")[2],
        )

    @classmethod
    def build(cls, backbone: nn.Module, config: DeltaConfig, *, empty: bool = False) -> dict[str, Insertion]:
        """Make the insertions for a backbone without touching it.

        Args:
            config: as `complete` gives it.
            empty: make them on the meta device, to be filled from a checkpoint.

        Returns:
            Real module name to insertion.
        """
        exclude = config.exclude_modules or ()
        defaults = {*cls.default_modified_modules}
        targets = find_targets(backbone, config.modified_modules or (), exclude, config.common_structure, defaults)
        targets = cls.choose(targets)
        for target in targets:
            check_target(target.name, target.module)
        widths = output_widths(backbone, {target.name: target.module for target in targets})
        fallback = next((p for p in backbone.parameters() if p.is_floating_point()), torch.empty(0))
        insertions = {}
        for target in targets:
            like = next((p for p in target.module.parameters() if p.is_floating_point()), fallback).detach()
            like = like.to("meta") if empty else like
            insertions[target.name] = cls._new(config, target, widths[target.name], like)
        return insertions

    @classmethod
    def _new(cls, config: Any, target: Target, width: int, like: Tensor) -> Insertion:
        if not target.parts:
            return cls.new_insertion(config, target, width, like)
        share = width // target.parts[0].count
        return FusedInsertion({part: cls.new_insertion(config, target, share, like) for part in target.parts})

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """The modules to act on for the modules addressed; a method may refuse some, or choose layers inside them."""
        return targets

    @classmethod
    def new_insertion(cls, config: Any, target: Target, width: int, like: Tensor) -> Insertion:
        """Make what acts at one target.

        Args:
            width: size of the target's output, or of the part of it that is meant.
            like: a tensor with the dtype and device that new parameters should have.
        """
        raise NotImplementedError

    @classmethod
    def from_config(
        cls,
        config: DeltaConfig | Mapping[str, Any],
        backbone_model: nn.Module,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """Make a fresh delta of this type.

        Args:
            config: a config, or its JSON form.
            options: options that replace those of `config`.
        """
        document = config.to_dict() if isinstance(config, DeltaConfig) else config
        if document.get("delta_type", cls.delta_type) != cls.delta_type:
            msg = f"{cls.__name__} makes deltas of type {cls.delta_type!r}, not {document['delta_type']!r}."
            raise ConfigError(msg)
        return cls.place(backbone_model, cls.config_class.from_dict(document, **options), name=name)

    @classmethod
    def place(
        cls,
        backbone: nn.Module,
        config: DeltaConfig,
        *,
        name: str | None = None,
        insertions: Mapping[str, Insertion] | None = None,
    ) -> Self:
        """Put a delta on a backbone, with ready insertions or fresh ones."""
        delta = cls.__new__(cls)
        DeltaBase.__init__(delta, backbone, config, name=name, insertions=insertions)
        return delta

    # ----- what it is -----

    @property
    def name(self) -> str:
        """The delta's name on this backbone."""
        return self._entry.name

    @property
    def config(self) -> DeltaConfig:
        """How the delta was made."""
        return self._entry.config

    @property
    def insertions(self) -> Mapping[str, Insertion]:
        """What the delta inserted, by real module name."""
        return self._entry.insertions

    @property
    def attached(self) -> bool:
        """Whether the delta acts."""
        return self._entry.attached

    @property
    def _ledger(self) -> Ledger:
        return ledger_of(self.backbone_model)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The delta's own parameters, named as in a checkpoint: ``<address>.deltas.<parameter>``."""
        for address, insertion in self.insertions.items():
            for key, parameter in insertion.named_parameters():
                yield f"{address}.{CHILD}.{key}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """The delta's own parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors that the delta consists of: its own, and those of the backbone that it trains or replaced.

        Before `freeze_module` every trainable tensor of the backbone counts as trained, as in OpenDelta.
        """
        own = {
            f"{address}.{CHILD}.{key}": tensor.detach()
            for address, insertion in self.insertions.items()
            for key, tensor in insertion.state_dict().items()
        }
        values = {name: self._ledger.value(self.backbone_model, self._entry, name) for name in self._entry.replaced}
        trained = {
            name: p.detach() for name, p in freezing.trainable(self.backbone_model) if name not in self._ledger.base
        }
        return {**own, **values, **trained}

    # ----- what it does -----

    def attach(self, module: nn.Module | None = None, reset_state_dict: bool = True) -> None:
        """Let the delta act again, in its old place among the others.

        Args:
            module: only what lies inside this module of the backbone; by default everything.
            reset_state_dict: whether `state_dict()` of the backbone leaves out what is frozen.
        """
        self._turn(True, module)
        self._ledger.only_trainable = reset_state_dict

    def detach(self, module: nn.Module | None = None, reset_state_dict: bool = True) -> None:
        """Take the delta out; without other deltas, the backbone is bit for bit what it was.

        Args:
            module: only what lies inside this module of the backbone; by default everything.
            reset_state_dict: whether `state_dict()` of the backbone is whole again.
        """
        self._turn(False, module)
        self._ledger.only_trainable = self._ledger.only_trainable and not reset_state_dict

    def _turn(self, on: bool, module: nn.Module | None) -> None:
        prefix = freezing.prefix_of(self.backbone_model, module)
        for address, insertion in self.insertions.items():
            if f"{address}.".startswith(prefix):
                target = self.backbone_model.get_submodule(address)
                if on:
                    near = next(target.parameters(), None)
                    insertion.to(None if near is None else near.device).train(target.training)
                site_of(target).turn(self.name, on)
        if module is None:
            self._entry.attached = on
            self._ledger.settle(self.backbone_model)

    def freeze_module(
        self, module: nn.Module | None = None, exclude: Sequence[str] | None = None, set_state_dict: bool = True
    ) -> None:
        """Freeze all but what is named, and let `state_dict()` of the backbone hold only what is trainable.

        Args:
            module: freeze inside this module of the backbone only; names are then relative to it.
            exclude: addresses of what stays trainable, real or common; ``"deltas"`` stands for the parameters of
                deltas. By default the config's `unfrozen_modules`.
            set_state_dict: whether `state_dict()` of the backbone leaves out what is frozen.

        Raises:
            NoMatchError: a name matches nothing.
        """
        names = self.config.unfrozen_modules if exclude is None else exclude
        kept = freezing.freeze(self.backbone_model, module, tuple(names or ()))
        prefix = freezing.prefix_of(self.backbone_model, module)
        stale = [name for name in self._entry.replaced if name.startswith(prefix) and name not in kept]
        self._ledger.release(self.backbone_model, self._entry, stale)
        self._ledger.replace(self.backbone_model, self._entry, dict.fromkeys(kept))
        self._entry.config = replace(self.config, unfrozen_modules=tuple(names or ()))
        self._ledger.only_trainable = set_state_dict

    def get_statistics(self, module: nn.Module | None = None) -> dict[str, float]:
        """Numbers of parameters and shares of the total, and CUDA memory in GB.

        Returns:
            total_parameters, trainable_parameters, trainable_ratio, delta_parameters, delta_ratio (fractions of the
            total), cudamem and maxcudamem.
        """
        return statistics.count(module if module is not None else self.backbone_model)

    def log(
        self,
        module: nn.Module | None = None,
        delta_ratio: bool = True,
        trainable_ratio: bool = True,
        visualization: bool = True,
        cuda_memory: bool = True,
    ) -> None:
        """Print the backbone as a tree with its deltas, and how much of it is trained."""
        root = module if module is not None else self.backbone_model
        statistics.report(root, delta_ratio, trainable_ratio, visualization, cuda_memory)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Never: a delta has no forward of its own.

        Raises:
            RuntimeError: always.
        """
        msg = "This is a delta model, which has no forward of its own. Call the backbone model instead."
        raise RuntimeError(msg)

    __call__ = forward

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        count = sum(parameter.numel() for parameter in self.parameters())
        return f"<{type(self).__name__} {self.name!r}: {len(self.insertions)} modules, {count:,} parameters, {state}>"


def deltas_of(backbone: nn.Module) -> dict[str, DeltaBase]:
    """The handles of all deltas on a backbone, by name, in the order they were added; also on a copy of it."""
    found: dict[str, DeltaBase] = {}
    for entry in entries_of(backbone):
        handle: DeltaBase = object.__new__(entry.handle)
        handle.backbone_model, handle._entry = backbone, entry
        found[entry.name] = handle
    return found


def delta_classes() -> Mapping[str, type[DeltaBase]]:
    """The delta types that have been imported, by name."""
    return _TYPES


def _refuse(interactive_modify: bool | int, backend: str) -> None:
    if interactive_modify:
        msg = "interactive_modify is not in this version: choose names with `deltahub inspect`, pass modified_modules."
        raise ConfigError(msg)
    if backend != "hf":
        msg = f"backend must be 'hf', got {backend!r}: any torch.nn.Module works with it."
        raise ConfigError(msg)


def _reset_compiler(backbone: nn.Module) -> None:
    """A compiled graph does not see a hook that was added after it: compile again."""
    if _is_compiled(backbone):
        torch.compiler.reset()
        statistics.LOGGER.warning("The backbone was compiled before the delta was added; it will be compiled again.")


def _is_compiled(module: nn.Module) -> bool:
    # Not `modules()`, which costs a tenth of attaching a delta.
    return module.__dict__.get("_compiled_call_impl") is not None or any(
        child is not None and _is_compiled(child) for child in module._modules.values()
    )
