"""DeltaBase: the handle of one delta on one backbone.

A handle is not a module: its parameters live in the backbone, each in the `deltas` child of the module it acts on.
`deltas_of(backbone)` recreates the handles, on the backbone or on any copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.engine.building import Like, addressed, build, completed, one_each, refuse_unsupported
from deltahub.engine.guards import check_name, note_compiled, refuse_closed
from deltahub.engine.insertion import Insertion
from deltahub.engine.ledger import Entry, Ledger, free_name, ledger_holding, ledger_of, ledgers_in, value_of
from deltahub.engine.modules import module_at
from deltahub.engine.overrides import overrides
from deltahub.engine.sharding import reshard
from deltahub.engine.site import delta_key, insert, uncompiled
from deltahub.engine.structure.targets import Target
from deltahub.handle import freezing
from deltahub.handle.freezing import FreezeMixin
from deltahub.handle.merging import MergeMixin
from deltahub.handle.report import ReportMixin
from deltahub.handle.saving import SaveLoadMixin
from deltahub.handle.switching import SwitchMixin

_TYPES: dict[str, type[DeltaBase]] = {}


class DeltaBase(SwitchMixin, FreezeMixin, MergeMixin, ReportMixin, SaveLoadMixin):
    """The base class of all delta types; a subclass needs a config class and `new_insertion`.

    Args:
        backbone_model: the model to modify. Its own parameters keep their names, values and places.
        config: where the delta is inserted and how it is built.
        name: the delta's name on this backbone; by default its type, with a number if that is taken.
        interactive_modify: True, or a local port, to choose the modules on a web page; the call waits for the choice.
        backend: kept for OpenDelta's signature; only ``"hf"``.
        insertions: existing insertions by module name, used instead of new ones.
        dtype: dtype of new parameters; by default float32, or the layer's dtype if wider. ``backbone_model.dtype`` halves their
            memory on a backbone in half precision. A layer's output keeps the layer's dtype in any case.

    Raises:
        NoMatchError: an address matches nothing.
        TargetError: a module cannot hold this delta.
        ConfigError: an option is invalid.
        NothingChosenError: the page for choosing modules was closed or cancelled.
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
            from deltahub.picker.choosing import config_chosen  # imported late: few calls need this server

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

    # ----- construction -----

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Return the modules to act on for the addressed modules; a method may refuse some, or choose layers inside them."""
        return targets

    @classmethod
    def plan(cls, backbone: nn.Module, config: Any) -> list[Target]:
        """Return the modules to act on, in backbone order: those that the config's addresses match."""
        return addressed(cls, backbone, config)

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: Any, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build the insertion of every target, by module name; by default each on its own with `new_insertion`.

        Args:
            like: returns, for a module, a tensor with the dtype and device for its delta.
        """
        return one_each(cls, backbone, config, targets, like)

    @classmethod
    def new_insertion(cls, config: Any, target: Target, width: int, like: Tensor) -> Insertion:
        """Build the insertion of one target.

        Args:
            width: size of the target's output, or of the addressed part.
            like: a tensor with the dtype and device for new parameters.
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
            insertions: existing insertions by module name, used instead of new ones.
            dtype: dtype of new parameters, as for the class.
            options: options that override those of `config`.

        Raises:
            ConfigError: the config is for another type, an option is unknown, or a value is invalid.
        """
        document = config.to_dict() if isinstance(config, DeltaConfig) else config
        delta = cls.__new__(cls)
        own = cls.config_class.from_dict(document, **options)
        DeltaBase.__init__(delta, backbone_model, own, name=name, insertions=insertions, dtype=dtype)
        return delta

    # ----- state -----

    @property
    def name(self) -> str:
        """The delta's name on this backbone."""
        return self._entry.name

    @property
    def config(self) -> DeltaConfig:
        """The delta's configuration."""
        return self._entry.config

    @property
    def insertions(self) -> Mapping[str, Insertion]:
        """The delta's insertions by real module name."""
        return self._entry.insertions

    @property
    def attached(self) -> bool:
        """Whether the delta is active."""
        return self._entry.attached

    @property
    def _ledger(self) -> Ledger:
        return ledger_holding(self.backbone_model, self._entry)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the delta's own parameters, named as in a checkpoint: ``<address>.deltas.<parameter>``."""
        for address, insertion in self.insertions.items():
            for key, parameter in insertion.named_parameters():
                yield delta_key(address, key), parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the delta's own parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors of the delta: its own, and those of the backbone that it trains or replaced.

        Before `freeze_module`, every trainable tensor of the backbone counts as trained, as in OpenDelta. On a sharded backbone,
        these are DTensors.
        """
        ledger_holding(self.backbone_model, self._entry)  # raises if the delta was removed
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
        """Raise an error: a delta has no forward of its own.

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
    """Return the handles of all deltas on a backbone and its parts, by name, in the order they were added.

    It also works on a copy of the backbone. If a delta on a part has the name of another one, the part's name comes first:
    ``"encoder.lora"``.
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
    """Return the imported delta types by name."""
    return _TYPES
