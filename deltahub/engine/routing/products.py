"""The product of a batch with LoRAs kept side by side, each row with its own.

y[i] = s[k] B[k] A[k] x[i],  k = numbers[i]        A: (count, r, n_in), B: (count, n_out, r), s: (count,)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RoutedProduct = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def gathered(x: Tensor, downs: Tensor, ups: Tensor, scales: Tensor, numbers: Tensor) -> Tensor:
    """Compute the updates of all rows by two stacked products of the gathered matrices.

    Args:
        x: ``(rows, length, n_in)``.
        downs: A of every LoRA, ``(count, r, n_in)``, with the dtype of `x` or another one.
        ups: B of every LoRA, ``(count, n_out, r)``.
        scales: their factors, ``(count,)`` float32.
        numbers: for each row the number of its LoRA, ``(rows,)`` integers from 0 to ``count - 1``.

    Returns:
        ``(rows, length, n_out)``, with the dtype of `x`.
    """
    down, up = downs.index_select(0, numbers), ups.index_select(0, numbers)
    if not down.dtype == up.dtype == x.dtype:
        down, up = down.to(x.dtype), up.to(x.dtype)
    low = scales.index_select(0, numbers).view(-1, 1, 1) * torch.bmm(x, down.mT)
    return torch.bmm(low if low.dtype == x.dtype else low.to(x.dtype), up.mT)
