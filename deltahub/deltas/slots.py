"""Slots for LoRAs: room that is reserved once, so that exchanging what is in it changes neither a graph nor a shape.

    y = W x + s[k] B[k] A[k] x        k: the selected slot, of all rows or of each row of a batch
                                      A: (slots + 1, r, n_in), B: (slots + 1, n_out, r), s: (slots + 1,)

The last slot is empty: the backbone without a LoRA. A LoRA of a lower rank is padded with zeros.

    slots = LoraSlots(backbone, slots=8, rank=16, modified_modules=["q_proj", "v_proj"])
    slots.load("en", "acme/en")
    compiled = torch.compile(backbone)
    slots.select("en")                                       for all rows
    with slots.route(["en", "fr", None]): compiled(**batch)  for each row
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Never, cast

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.deltas.slot_layers import LowRank, Selection, SlottedUpdate, low_rank_of, product_of
from deltahub.deltas.target_checks import require_linear
from deltahub.engine.building import Like
from deltahub.engine.guards import refuse_merged, refuse_routed
from deltahub.engine.insertion import Insertion
from deltahub.engine.ledger import ledger_holding
from deltahub.engine.shapes import linear_shape
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError, RouteError
from deltahub.handle.base import DeltaBase, class_for
from deltahub.handle.loading import read_for
from deltahub.handle.routing import modules_with_rows_first


@dataclass(frozen=True, kw_only=True)
class LoraSlotsConfig(DeltaConfig):
    """Options of slots.

    Args:
        slots: number of LoRAs that have room, at least 1.
        rank: the largest rank of a LoRA, at least 1.
        kernel: what computes a routed batch: ``"torch"`` or ``"triton"``.
    """

    slots: int = 8
    rank: int = 16
    kernel: str = "torch"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("slots", "rank"):
            if not isinstance(value := getattr(self, key), int) or isinstance(value, bool) or value < 1:
                msg = f"{key} must be a whole number of at least 1, got {value!r}."
                raise ConfigError(msg)


class LoraSlots(DeltaBase):
    """Slots for LoRAs on linear layers of a backbone, for inference: they are filled, selected, scaled and routed without recompiling.

    A slot holds a copy of a LoRA. Slots are not saved and do not train.

    Args:
        backbone_model: the model to serve.
        slots: number of LoRAs that have room, at least 1.
        rank: the largest rank of a LoRA, at least 1.
        modified_modules: addresses of linear layers; a fused layer is addressed as a whole.
        exclude_modules: addresses of modules to leave out.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        name: the name of the slots on this backbone.
        dtype: dtype of the slots; by default float32, or the layer's if wider.
        kernel: what computes a routed batch: ``"torch"``, or ``"triton"`` on a GPU (experimental: tried in Triton's interpreter only).

    Raises:
        ConfigError: an option is invalid, or Triton is not installed.
        NoMatchError: an address matches nothing.
        TargetError: a module is not a linear layer.
    """

    config_class = LoraSlotsConfig
    default_modified_modules = ("attn@.q@", "attn@.v@")

    def __init__(
        self,
        backbone_model: nn.Module,
        slots: int = 8,
        rank: int = 16,
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        *,
        name: str | None = None,
        dtype: torch.dtype | None = None,
        kernel: str = "torch",
    ) -> None:
        config = LoraSlotsConfig(
            slots=slots,
            rank=rank,
            kernel=kernel,
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            common_structure=common_structure,
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype)

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Return the linear layers, fused ones as a whole.

        Raises:
            TargetError: a module is not a linear layer.
        """
        require_linear(targets, "slots")
        return [Target(target.name, target.module) for target in targets]

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: Any, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build the slots of every layer."""
        selection = Selection(config.slots, like(targets[0].module).device, product_of(config.kernel))
        return {
            target.name: SlottedUpdate(
                like(target.module), *linear_shape(target.name, target.module), config.rank, selection
            )
            for target in targets
        }

    @property
    def _selection(self) -> Selection:
        return self._slotted[0][1].selection

    @property
    def _slotted(self) -> list[tuple[str, SlottedUpdate]]:
        return [(address, cast("SlottedUpdate", insertion)) for address, insertion in self.insertions.items()]

    # ----- what is in the slots -----

    @property
    def names(self) -> Mapping[str, int]:
        """The slot number of each LoRA by name, for `route` with a tensor."""
        return dict(self._selection.numbers)

    @property
    def selected(self) -> str | None:
        """The LoRA that acts on all rows, or None."""
        number = int(self._selection.number)
        return next((name for name, slot in self._selection.numbers.items() if slot == number), None)

    def load(
        self,
        name: str,
        delta: DeltaBase | str | os.PathLike[str],
        *,
        check_hash: bool | str = True,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        allow_pickle: bool = False,
    ) -> int:
        """Copy a LoRA into a slot: into the one of this name, or else into a free one.

        Args:
            name: its name among the slots.
            delta: a delta on this backbone, or a folder, a reference or a link, in any format that `from_finetuned` reads.
            check_hash, cache_dir, force_download, local_files_only, allow_pickle: as for `from_finetuned`.

        Returns:
            The number of the slot.

        Raises:
            ConfigError: the slots are full, or the delta does not fit: its rank is too high, it acts on other modules, it is not
                a plain LoRA, or it trained tensors of the backbone. Nothing was changed.
            MergeError: deltas are merged.
            TargetError: the slots were removed, or a module that holds them was replaced.
        """
        self.check_places()
        refuse_merged(self.backbone_model)
        number = self._slot_for(name)
        if isinstance(delta, DeltaBase):
            insertions, trained = self._of_handle(name, delta)
        else:
            saved = read_for(
                class_for,
                delta,
                self.backbone_model,
                check_hash=check_hash,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                allow_pickle=allow_pickle,
            )
            insertions, trained = saved.insertions, saved.replaced
        if trained:
            msg = f"{name!r} brings its own value of {next(iter(trained))}, and a slot holds a LoRA alone. Load it as a delta instead."
            raise ConfigError(msg)
        with torch.no_grad():
            updates = self._fitting(name, insertions)
            for address, slotted in self._slotted:
                slotted.write(number, *updates.get(address, (None, None, 0.0)))
        self._selection.numbers[name] = number
        return number

    def _of_handle(self, name: str, delta: DeltaBase) -> tuple[Mapping[str, Insertion], Mapping[str, Any]]:
        if delta.backbone_model is not self.backbone_model:
            msg = f"{name!r} is a delta on another backbone. Save it, and load it into a slot from its folder."
            raise ConfigError(msg)
        delta.check_places()
        return delta.insertions, delta._entry.replaced

    def _slot_for(self, name: str) -> int:
        """Return the slot of a name, or a free one.

        Raises:
            ConfigError: there is none.
        """
        numbers: dict[str, int] = self._selection.numbers
        if name in numbers:
            return numbers[name]
        free: list[int] = sorted({*range(self._selection.empty)} - {*numbers.values()})
        if not free:
            msg = (
                f"All {self._selection.empty} slots are in use ({', '.join(map(repr, numbers))}), so {name!r} has no room. "
                "Unload one, load it under the name of one, or reserve more slots."
            )
            raise ConfigError(msg)
        return free[0]

    def _fitting(self, name: str, insertions: Mapping[str, Insertion]) -> dict[str, LowRank]:
        """Return A, B and the factor for each module of a delta.

        Raises:
            ConfigError: one does not fit into a slot.
        """
        updates = {}
        for address, insertion in insertions.items():
            slotted = self.insertions.get(address)
            if not isinstance(slotted, SlottedUpdate):
                msg = f"{name!r} acts on {address}, where no slots are reserved. Reserve slots on all modules of the deltas to serve."
                raise ConfigError(msg)
            updates[address] = down, up, _ = low_rank_of(name, address, insertion, len(slotted.ups[0]))
            rank, limit = len(down), slotted.downs.shape[1]
            if rank > limit:
                msg = (
                    f"{name!r} has rank {rank} at {address}, and the slots have rank {limit}. "
                    f"Reserve slots with rank={rank}, or resize the delta (deltahub.resize)."
                )
                raise ConfigError(msg)
            if (up.shape[0], down.shape[1]) != (slotted.ups.shape[1], slotted.downs.shape[2]):
                msg = f"{name!r} has {list(up.shape)} x {list(down.shape)} at {address}, which does not fit that layer."
                raise ConfigError(msg)
        return updates

    def unload(self, name: str) -> None:
        """Free a slot; if its LoRA is selected, none is afterwards.

        Raises:
            ConfigError: no slot has this name.
            RouteError: a route is open.
        """
        number = self._number(name)
        refuse_routed(self.backbone_model)
        if self.selected == name:
            self.select(None)
        with torch.no_grad():
            for _, slotted in self._slotted:
                slotted.write(number, None, None, 0.0)
        del self._selection.numbers[name]

    # ----- which slot acts -----

    def select(self, name: str | None) -> None:
        """Let one LoRA act on all rows, or None.

        Raises:
            ConfigError: no slot has this name.
            TargetError: the slots were removed, or a module that holds them was replaced.
        """
        self.check_places()
        number = self._selection.empty if name is None else self._number(name)
        self._selection.number.fill_(number)

    def set_strength(self, name: str, strength: float) -> None:
        """Multiply the update of a LoRA by a number: 1 is as trained, 0 is without effect.

        Raises:
            ConfigError: no slot has this name, or the strength is not a finite number.
        """
        number = self._number(name)
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or strength - strength != 0:
            msg = f"strength must be a finite number, got {strength!r}."
            raise ConfigError(msg)
        with torch.no_grad():
            for _, slotted in self._slotted:
                slotted.scales[number] = strength * slotted.factors[number]

    @contextmanager
    def route(self, rows: Sequence[str | None] | Tensor) -> Iterator[None]:
        """Send each row of a batch through the LoRA of a slot, for the duration of the block.

        Other attached deltas act on all rows. The first route of a compiled backbone compiles one more graph, later ones none.

        Args:
            rows: for each row the name of its LoRA, or None for the backbone without one; or the slot numbers as in `names`,
                ``(rows,)`` integers, with -1 for None.

        Raises:
            RouteError: a row names no slot, the slots are detached, or a route is open; in a forward pass: the batch has another
                number of rows, or a module does not have one entry for each row.
            MergeError: deltas are merged.
        """
        self.check_places()
        refuse_merged(self.backbone_model)
        refuse_routed(self.backbone_model)
        if not self.attached:
            msg = f"{self.name!r} is detached. Call attach() first."
            raise RouteError(msg)
        numbers = self._numbers(rows)
        self._look_at_modules()
        selection, ledger = self._selection, ledger_holding(self.backbone_model, self._entry)
        selection.rows, ledger.route = torch.tensor(numbers, device=selection.number.device), _Open()
        try:
            yield
        finally:
            selection.rows, ledger.route = None, None

    def _numbers(self, rows: Sequence[str | None] | Tensor) -> list[int]:
        """Return the slot number of each row.

        Raises:
            RouteError: a row names no slot that is in use.
        """
        numbers, empty = self._selection.numbers, self._selection.empty
        if isinstance(rows, Tensor):
            if rows.dim() != 1 or rows.is_floating_point() or not len(rows):
                msg = f"Slot numbers are a tensor (rows,) of integers, got {list(rows.shape)} of {rows.dtype}."
                raise RouteError(msg)
            allowed: dict[Any, int] = {-1: empty, **{number: number for number in numbers.values()}}
            keys: list[Any] = rows.tolist()
        else:
            allowed, keys = {None: empty, **numbers}, [] if isinstance(rows, str) else list(rows)
        if not keys or (wrong := [key for key in keys if key not in allowed]):
            msg = f"A route lists for each row of the batch one of {', '.join(map(repr, allowed))}; got {wrong[0] if keys else rows!r}."
            raise RouteError(msg)
        return [allowed[key] for key in keys]

    def _look_at_modules(self) -> None:
        """Find out once, by a forward pass without values, which layers certainly have one entry for each row."""
        if self._slotted[0][1].rows_first is None:
            rows_first = modules_with_rows_first(self.backbone_model, self.insertions)
            for address, slotted in self._slotted:
                slotted.rows_first = address in rows_first
                slotted.takes_single_tokens = any("experts" in part for part in address.split("."))

    def _number(self, name: str) -> int:
        if name not in self._selection.numbers:
            names = ", ".join(map(repr, self._selection.numbers)) or "none"
            msg = f"No slot holds {name!r}; the slots hold {names}."
            raise ConfigError(msg)
        number: int = self._selection.numbers[name]
        return number

    def state_dict(self) -> Never:
        """Raise an error: slots hold copies.

        Raises:
            ConfigError: always.
        """
        msg = "Slots hold copies of deltas and are not saved. Save each delta from its own handle."
        raise ConfigError(msg)


class _Open:
    """The mark of an open route in a ledger; a copy of the backbone has none."""

    def __reduce__(self) -> Any:
        return type(None), ()
