"""The insertion of LoRA slots: several LoRAs side by side, of which one acts, on all rows or on single rows of a batch.

The formulas are in `deltahub.deltas.slots`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.deltas.lora_layers import LowRankUpdate
from deltahub.deltas.precision import added
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.routing.products import RoutedProduct, gathered
from deltahub.engine.weights import FusedInsertion
from deltahub.errors import ConfigError, RouteError

LowRank = tuple[Tensor, Tensor, float]  # A, B and the factor


class Selection(nn.Module):
    """The slots in use, and which of them acts; shared by all insertions of one `LoraSlots`.

    A copy of it has no open route.

    Args:
        slots: number of slots; the number after the last is that of the empty slot.
        device: the device of the slot numbers.
        product: computes the updates of a routed batch.

    Attributes:
        number: the slot that acts on all rows, ``(1,)`` integer.
        rows: while a route is open, the slot of each row, ``(rows,)`` integers.
        numbers: the slot of each LoRA by name.
    """

    number: Tensor

    def __init__(self, slots: int, device: torch.device, product: RoutedProduct) -> None:
        super().__init__()
        self.empty = slots
        self.numbers: dict[str, int] = {}
        self.rows: Tensor | None = None
        self.product = product
        self.register_buffer("number", torch.tensor([slots], device=device), persistent=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rows": None}


class SlottedUpdate(Insertion):
    """An insertion that adds ``s[k] B[k] A[k] x`` to the output of a linear layer, where k is the selected slot.

    The matrices are buffers that no checkpoint contains: slots are filled from deltas, and do not train.

    Args:
        like: a tensor with the dtype and device of the slots.
        n_in: width of the input.
        n_out: width of the output.
        rank: rank of each slot.
        selection: which slot acts.

    Attributes:
        factors: the factor of each slot before its strength.
        rows_first: whether the layer certainly has one entry for each row of a batch; None if that is not known yet.
        takes_single_tokens: whether the layer is part of a mixture of experts, so that it may be called with some tokens of all rows.
    """

    downs: Tensor
    ups: Tensor
    scales: Tensor

    def __init__(self, like: Tensor, n_in: int, n_out: int, rank: int, selection: Selection) -> None:
        super().__init__()
        count = selection.empty + 1
        self.selection = selection
        self.factors = [0.0] * count
        self.rows_first: bool | None = None
        self.takes_single_tokens = False
        self.register_buffer("downs", like.new_zeros(count, rank, n_in), persistent=False)
        self.register_buffer("ups", like.new_zeros(count, n_out, rank), persistent=False)
        self.register_buffer("scales", like.new_zeros(count, dtype=torch.float32), persistent=False)

    def write(self, number: int, down: Tensor | None, up: Tensor | None, factor: float) -> None:
        """Copy a LoRA into a slot, padded with zeros.

        Args:
            number: the slot.
            down: A, ``(r, n_in)``, at most of the slot's rank; None for zeros.
            up: B, ``(n_out, r)``.
            factor: its factor.
        """
        self.downs[number].zero_()
        self.ups[number].zero_()
        if down is not None and up is not None:
            self.downs[number, : len(down)] = down
            self.ups[number, :, : len(down)] = up
        self.factors[number] = factor
        self.scales[number] = factor

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update of the selected slot, or of each row's slot, to the output tensor, ``(..., n_out)``."""
        # From the dicts, not as attributes: for one token nn.Module.__getattr__ would be a noticeable part of the cost.
        buffers, selection = self._buffers, cast("Selection", self._modules["selection"])
        downs, ups, scales = cast("tuple[Tensor, ...]", (buffers["downs"], buffers["ups"], buffers["scales"]))
        x, dtype = first_input(args, kwargs), output.dtype
        if not x.dtype == dtype == downs.dtype:
            dtype = torch.promote_types(dtype, downs.dtype)
            x = x.to(dtype)
        if (rows := selection.rows) is not None:
            self._check(target, x, len(rows))
            stacked = x.reshape(len(rows), -1, x.shape[-1])
            update = selection.product(
                stacked, downs, ups, scales, rows if rows.device == x.device else rows.to(x.device)
            )
            return added(output, update.view(output.shape))
        number = cast("Tensor", selection._buffers["number"]).to(x.device)
        low = scales.index_select(0, number) * F.linear(x, downs.index_select(0, number)[0].to(dtype))
        return added(output, F.linear(low.to(dtype), ups.index_select(0, number)[0].to(dtype)))

    def _check(self, target: nn.Module, x: Tensor, rows: int) -> None:
        """Check that the first dimension of an input counts the rows of the batch.

        Raises:
            RouteError: it does not, or that is not certain.
        """
        place = f"a {type(target).__name__} is given {list(x.shape)}"
        if x.dim() < 2 or x.shape[0] != rows:
            msg = (
                f"The route has {rows} rows, and {place}. List one LoRA or None for each row of the batch. A module that does not "
                "take one entry for each row (the length first, the tokens of all rows together) cannot be routed."
            )
            raise RouteError(msg)
        is_square = x.dim() > 2 and x.shape[1] == rows > 1
        if (x.dim() == 2 and self.takes_single_tokens) or (is_square and not self.rows_first):
            msg = (
                f"While a route is open, {place}, and it is not certain that the first dimension counts the {rows} rows of the batch. "
                "Pad the batch to another length, or reserve no slots there."
            )
            raise RouteError(msg)


def low_rank_of(name: str, address: str, insertion: Insertion, n_out: int) -> LowRank:
    """Return A, B and the factor of an insertion for the whole layer.

    Raises:
        ConfigError: it is not a plain LoRA.
    """
    if isinstance(insertion, FusedInsertion):
        updates = [
            (part.rows(n_out), *low_rank_of(name, address, insertion.at(part), n_out)) for part in insertion.parts
        ]
        down = torch.cat([part_down for _, part_down, _, _ in updates])
        up, start = updates[0][2].new_zeros(n_out, len(down)), 0
        for rows, part_down, part_up, factor in updates:
            up[rows.to(up.device), start : start + len(part_down)] = factor * part_up
            start += len(part_down)
        return down, up, 1.0
    if type(insertion) is LowRankUpdate and insertion.lora_bias is None:
        return insertion.lora_A, insertion.lora_B, float(insertion.scale)
    kind = "LoRA with a bias" if type(insertion) is LowRankUpdate else type(insertion).__name__
    msg = (
        f"{name!r} has a {kind} at {address}, and slots hold plain LoRAs of linear layers. Load it as a delta instead."
    )
    raise ConfigError(msg)


def product_of(kernel: str) -> RoutedProduct:
    """Return the function that computes the updates of a routed batch.

    Args:
        kernel: ``"torch"`` for `gathered`, ``"triton"`` for the kernels of `engine/routing/kernels.py`.

    Raises:
        ConfigError: the kernel is unknown, or Triton is not installed.
    """
    if kernel == "torch":
        return gathered
    if kernel != "triton":
        msg = f"kernel must be 'torch' or 'triton', got {kernel!r}."
        raise ConfigError(msg)
    if find_spec("triton") is None:
        msg = "kernel='triton' needs the package triton, which is not installed. Install it (pip install triton), or use kernel='torch'."
        raise ConfigError(msg)
    from deltahub.engine.routing.kernels import by_kernels  # late: it imports Triton

    return by_kernels
