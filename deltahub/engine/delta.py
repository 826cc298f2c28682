"""DeltaBase: the handle of one delta on one backbone.

A handle is no module: the parameters it speaks of live in the backbone, each in the `deltas` child of the module it
acts on. `deltas_of(backbone)` finds the handles again, on the backbone or on any copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from deltahub.config import DeltaConfig
from deltahub.engine import freezing
from deltahub.engine.building import Like, addressed, build, completed, one_each, refuse_unsupported
from deltahub.engine.compiling import note_compiled, refuse_closed
from deltahub.engine.freezing import FreezeMixin
from deltahub.engine.guards import check_name
from deltahub.engine.insertion import Insertion
from deltahub.engine.ledger import Entry, Ledger, free_name, ledger_holding, ledger_of, ledgers_in, value_of
from deltahub.engine.merging import MergeMixin
from deltahub.engine.modules import module_at
from deltahub.engine.overrides import overrides
from deltahub.engine.sharding import reshard
from deltahub.engine.site import delta_key, insert, uncompiled
from deltahub.engine.statistics import ReportMixin
from deltahub.engine.structure.targets import Target
from deltahub.engine.switching import SwitchMixin
from deltahub.saveload import SaveLoadMixin

_TYPES: dict[str, type[DeltaBase]] = {}


class DeltaBase(SwitchMixin, FreezeMixin, MergeMixin, ReportMixin, SaveLoadMixin):
    """What all delta types share; subclass it with a config class and `new_insertion` to make another.

    Args:
        backbone_model: the model to modify. Its own parameters keep their names, values and places.
        config: where the delta sits and how it is made.
        name: the delta's name on this backbone; by default its type, and a number if that is taken.
        interactive_modify: True, or a port of this machine, to choose the modules on a page; the call waits for it.
        backend: kept for OpenDelta's signature; only ``"hf"``.
        insertions: ready insertions by module name, instead of fresh ones.
        dtype: of fresh parameters; by default float32, or that of the layer where it is wider. ``backbone_model.dtype`` halves their
            memory on a backbone in half precision. What comes out of a layer has the layer's own dtype in any case.

    Raises:
        NoMatchError: an address matches nothing.
        TargetError: a module cannot hold this delta.
        ConfigError: an option can never work.
        NothingChosenError: the page on which modules were to be chosen was closed or cancelled.
    """

    delta_type: ClassVar[str] = ""
    config_class: ClassVar[type[DeltaConfig]] = DeltaConfig
    default_modified_modules: ClassVar[tuple[str, ...]] = ()
    default_exclude_modules: ClassVar[tuple[str, ...]] = ("lm_head",)
    default_unfrozen_modules: ClassVar[tuple[str, ...]] = ("deltas",)
    addresses_each: ClassVar[int] = 1

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
        dtype: torch.dtype | None = None,
    ) -> None:
        refuse_unsupported(backend)
        refuse_closed(backbone_model)
        if name is not None:
            check_name(backbone_model, name)
        if interactive_modify is not False:
            from deltahub.web.choosing import config_chosen  # late: a server that few calls need

            config = config_chosen(type(self), backbone_model, config, interactive_modify)
        config = completed(type(self), config, backbone_model)
        if insertions is None:
            insertions = build(type(self), backbone_model, config, dtype=dtype)
        name = name or free_name(backbone_model, self.delta_type or type(self).__name__)
        ledger = ledger_of(backbone_model)
        self.backbone_model = backbone_model
        self._entry = Entry(name, type(self), config, dict(insertions))
        for address, insertion in insertions.items():
            insert(module_at(backbone_model, address), name, insertion, address)
        ledger.entries[name] = self._entry
        note_compiled(module_at(backbone_model, address) for address in insertions)

    # ----- making -----

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """The modules to act on for the modules addressed; a method may refuse some, or choose layers inside them."""
        return targets

    @classmethod
    def plan(cls, backbone: nn.Module, config: Any) -> list[Target]:
        """The modules to act on, in the order of the backbone: those that the config's addresses mean."""
        return addressed(cls, backbone, config)

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: Any, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Make what acts at every target, by module name; by default each from `new_insertion`, apart from the others.

        Args:
            like: gives, for a module, a tensor with the dtype and device that its delta should have.
        """
        return one_each(cls, backbone, config, targets, like)

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
        insertions: Mapping[str, Insertion] | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """Put a delta of this type on a backbone.

        Args:
            config: a config, or its JSON form.
            insertions: ready insertions by module name, instead of fresh ones.
            dtype: of fresh parameters, as the class takes it.
            options: options that replace those of `config`.

        Raises:
            ConfigError: the config is of another type, an option is unknown, or a value can never work.
        """
        document = config.to_dict() if isinstance(config, DeltaConfig) else config
        delta = cls.__new__(cls)
        own = cls.config_class.from_dict(document, **options)
        DeltaBase.__init__(delta, backbone_model, own, name=name, insertions=insertions, dtype=dtype)
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
        return ledger_holding(self.backbone_model, self._entry)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The delta's own parameters, named as in a checkpoint: ``<address>.deltas.<parameter>``."""
        for address, insertion in self.insertions.items():
            for key, parameter in insertion.named_parameters():
                yield delta_key(address, key), parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """The delta's own parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors that the delta consists of: its own, and those of the backbone that it trains or replaced.

        Before `freeze_module` every trainable tensor of the backbone counts as trained, as in OpenDelta. Where the backbone
        is sharded these are DTensors.
        """
        ledger_holding(self.backbone_model, self._entry)  # or an error: the delta was removed
        reshard(self.backbone_model)
        own = {
            delta_key(address, key): tensor.detach()
            for address, insertion in self.insertions.items()
            for key, tensor in insertion.state_dict().items()
        }
        values = {name: value_of(self.backbone_model, self._entry, name) for name in sorted(self._entry.replaced)}
        records = dict(overrides(self.backbone_model))
        trained = {
            name: records[name].own(parameter) if name in records else parameter.detach()
            for name, parameter in freezing.trainable(self.backbone_model)
            if name not in records or not records[name].values
        }
        return {**own, **values, **trained}

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
    """The handles of all deltas on a backbone and on parts of it, by name, in the order they were added; also on a copy of it.

    Where a delta on a part has the name of another, the name of the part stands before it: ``"encoder.lora"``.
    """
    entries = [
        (e, part, address)
        for address, part, ledger in ledgers_in(uncompiled(backbone))
        for e in ledger.entries.values()
    ]
    found: dict[str, DeltaBase] = {}
    for entry, part, address in sorted(entries, key=lambda one: one[0].serial):
        handle: DeltaBase = object.__new__(entry.handle)
        handle.backbone_model, handle._entry = part, entry
        found[f"{address}.{entry.name}" if entry.name in found else entry.name] = handle
    return found


def delta_classes() -> Mapping[str, type[DeltaBase]]:
    """The delta types that have been imported, by name."""
    return _TYPES
