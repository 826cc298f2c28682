"""The product of `engine/routing/products.py` as two Triton kernels, which gather no matrices.

    low[i] = A[k] x[i]              one program for each row and block of its length
    y[i] = B[k] (s[k] low[i])       one program for each row, block of its length and block of n_out

The kernels accumulate in float32. They were run in Triton's interpreter, and not yet on a device.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-not-found, import-untyped"
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import os
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltahub.engine.routing.products import gathered

_LENGTH: Final = 16  # the smallest block of a product
_WIDTH: Final = 64
_INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _shrink(x, downs, low, numbers, length, n_in, rank, block: tl.constexpr, padded: tl.constexpr, width: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    number = tl.load(numbers + row)
    tokens = tl.program_id(1) * block + tl.arange(0, block)
    ranks = tl.arange(0, padded)
    total = tl.full((block, padded), 0.0, tl.float32)
    for start in range(0, n_in, width):
        columns = start + tl.arange(0, width)
        inside = columns < n_in
        left = tl.load(
            x + (row * length + tokens[:, None]) * n_in + columns[None, :],
            mask=(tokens[:, None] < length) & inside[None, :],
            other=0.0,
        )
        right = tl.load(
            downs + (number * rank + ranks[None, :]) * n_in + columns[:, None],
            mask=(ranks[None, :] < rank) & inside[:, None],
            other=0.0,
        )
        total += tl.dot(left, right.to(left.dtype), input_precision="ieee")
    place = low + (row * length + tokens[:, None]) * rank + ranks[None, :]
    tl.store(place, total, mask=(tokens[:, None] < length) & (ranks[None, :] < rank))


@triton.jit
def _expand(
    low, ups, scales, out, numbers, length, n_out, rank, block: tl.constexpr, padded: tl.constexpr, width: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    number = tl.load(numbers + row)
    tokens = tl.program_id(1) * block + tl.arange(0, block)
    columns = tl.program_id(2) * width + tl.arange(0, width)
    ranks = tl.arange(0, padded)
    left = tl.load(
        low + (row * length + tokens[:, None]) * rank + ranks[None, :],
        mask=(tokens[:, None] < length) & (ranks[None, :] < rank),
        other=0.0,
    )
    left = (tl.load(scales + number) * left).to(out.dtype.element_ty)
    right = tl.load(
        ups + (number * n_out + columns[None, :]) * rank + ranks[:, None],
        mask=(columns[None, :] < n_out) & (ranks[:, None] < rank),
        other=0.0,
    )
    product = tl.dot(left, right.to(left.dtype), input_precision="ieee")
    place = out + (row * length + tokens[:, None]) * n_out + columns[None, :]
    tl.store(place, product.to(out.dtype.element_ty), mask=(tokens[:, None] < length) & (columns[None, :] < n_out))


def by_kernels(x: Tensor, downs: Tensor, ups: Tensor, scales: Tensor, numbers: Tensor) -> Tensor:
    """Compute the updates of all rows, as `gathered` does; by `gathered` itself on a CPU, in float64, or where a gradient is needed.

    Args:
        x: ``(rows, length, n_in)``.
        downs: A of every LoRA, ``(count, r, n_in)``.
        ups: B of every LoRA, ``(count, n_out, r)``.
        scales: their factors, ``(count,)`` float32.
        numbers: for each row the number of its LoRA, ``(rows,)`` integers.

    Returns:
        ``(rows, length, n_out)``, with the dtype of `x`.
    """
    on_cpu = x.device.type == "cpu" and not _INTERPRETED
    if on_cpu or x.dtype == torch.float64 or (torch.is_grad_enabled() and x.requires_grad):
        return gathered(x, downs, ups, scales, numbers)
    rows, length, n_in = x.shape
    rank, n_out = downs.shape[1], ups.shape[1]
    x = x.contiguous()
    low = x.new_empty(rows, length, rank, dtype=torch.float32)
    out = x.new_empty(rows, length, n_out)
    blocks, padded = triton.cdiv(length, _LENGTH), max(16, triton.next_power_of_2(rank))
    sizes = {"block": _LENGTH, "padded": padded, "width": _WIDTH}
    _shrink[(rows, blocks)](x, downs, low, numbers, length, n_in, rank, **sizes)
    _expand[(rows, blocks, triton.cdiv(n_out, _WIDTH))](low, ups, scales, out, numbers, length, n_out, rank, **sizes)
    return out
