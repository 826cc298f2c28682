"""A sum of a weight and a low-rank update that products use without computing it.

    M = W + s L R        W: (..., m, n), L: (..., m, r), R: (..., r, n)

    x M^T = x W^T + s (x R^T) L^T        linear, of a matrix
    x M   = x W   + s (x L) R            matmul, bmm, grouped products of a stack of experts

A forward that multiplies by its weight, indexes a stack of weights by expert, or transposes it, works with such a sum as it is. Any other
operation receives the computed sum. The products run in the dtype of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

_GROUPED_BYTES: Final = 16  # grouped products need rows of a multiple of this size
_LAST_TWO: Final = ({-1, -2}, {1, 2})
_MATRIX_PRODUCTS: Final = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.bmm)
_GROUPED_PRODUCTS: Final = tuple(
    function
    for function in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None))
    if function is not None
)


class LowRankSum:
    """A lazy ``W + s L R``.

    Args:
        weight: a tensor, or another sum.
        left: L; a matrix is that of every weight of a stack.
        right: R, with as many dimensions as L.
        scale: s.
    """

    def __init__(self, weight: Any, left: Tensor, right: Tensor, scale: float | Tensor) -> None:
        self._weight = weight
        self._left = left
        self._right = right
        self._scale = scale

    @property
    def shape(self) -> torch.Size:
        """The shape of W."""
        shape: torch.Size = self._weight.shape
        return shape

    @property
    def ndim(self) -> int:
        """The number of dimensions of W."""
        return len(self._weight.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of W."""
        dtype: torch.dtype = self._weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """The device of W."""
        device: torch.device = self._weight.device
        return device

    def dense(self) -> Tensor:
        """Compute the sum, in the wider of the precisions, and round it to the dtype of W."""
        weight: Tensor = self._weight.dense() if isinstance(self._weight, LowRankSum) else self._weight
        wide = torch.promote_types(weight.dtype, self._left.dtype)
        update = (self._left.to(wide) @ self._right.to(wide)).to(wide)  # autocast narrows it
        return (weight.to(wide) + self._scale * update).to(weight.dtype)

    def __getitem__(self, index: Any) -> Any:
        """Select weights of a stack; any other selection is one of the computed sum."""
        of_experts = isinstance(index, int) or (isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32))
        if self.ndim != 3 or not of_experts:
            return self.dense()[index]
        return self._one(index) if isinstance(index, int) or index.dim() == 0 else self._selected(index)

    def _selected(self, index: Any) -> LowRankSum:
        shared = self._left.dim() == 2
        left, right = (side if shared else side[index] for side in (self._left, self._right))
        return LowRankSum(self._weight[index], left, right, self._scale)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _one(self, index: Any) -> LowRankSum:
        """Select one weight; its number is data, which no graph can depend on."""
        return self._selected(index)

    def transpose(self, first: int, second: int) -> Any:
        """Exchange two dimensions."""
        if {first, second} not in (_LAST_TWO if self.ndim == 3 else (*_LAST_TWO[:1], {0, 1})):
            return self.dense().transpose(first, second)
        return LowRankSum(self._weight.transpose(-2, -1), self._right.mT, self._left.mT, self._scale)

    @property
    def mT(self) -> Any:  # noqa: N802  (torch's name)
        """The sum with its last two dimensions exchanged."""
        return self.transpose(-2, -1)

    @property
    def T(self) -> Any:  # noqa: N802  (torch's name)
        """The transposed matrix."""
        return self.transpose(-2, -1) if self.ndim == 2 else self.dense().T

    def t(self) -> Any:
        """Transpose the matrix."""
        return self.T

    def to(self, *args: Any, **kwargs: Any) -> LowRankSum:
        """Cast or move W, as `Tensor.to` does; the factors follow in the products."""
        return LowRankSum(self._weight.to(*args, **kwargs), self._left, self._right, self._scale)

    def type(self, dtype: torch.dtype) -> LowRankSum:
        """Cast W."""
        return self.to(dtype)

    def float(self) -> LowRankSum:
        """Cast W to float32."""
        return self.to(torch.float32)

    def contiguous(self) -> LowRankSum:
        """Return the sum itself, which has no memory of its own."""
        return self

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(self, other)  # type: ignore[arg-type]

    def __add__(self, other: Any) -> Any:
        return self.dense() + other

    def __radd__(self, other: Any) -> Any:
        return other + self.dense()

    def __sub__(self, other: Any) -> Any:
        return self.dense() - other

    def __rsub__(self, other: Any) -> Any:
        return other - self.dense()

    def __mul__(self, other: Any) -> Any:
        return self.dense() * other

    def __rmul__(self, other: Any) -> Any:
        return other * self.dense()

    def __truediv__(self, other: Any) -> Any:
        return self.dense() / other

    def __neg__(self) -> Any:
        return -self.dense()

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a protocol that Python asks for
            raise AttributeError(name)
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation of torch: a product with both parts, anything else with the computed sum."""
        kwargs = kwargs or {}
        left: Any = args[0]
        right: Any = args[1] if len(args) > 1 else None
        if isinstance(right, cls) and not isinstance(left, cls):
            if function is F.linear:
                return _linear(*args, **kwargs)
            if function in _MATRIX_PRODUCTS:
                return _times(function, left, right)
            if function in _GROUPED_PRODUCTS or _is_fallback(function):
                return _grouped(function, *args, **kwargs)
        elif function in _MATRIX_PRODUCTS and isinstance(left, cls) and not isinstance(right, cls):
            return _applied(function, left, right)
        return function(*map(_computed, args), **{key: _computed(value) for key, value in kwargs.items()})

    def _factors(self) -> tuple[Tensor, Tensor]:
        return self._left.to(self.dtype), self._right.to(self.dtype)

    def _added(self, base: Tensor, update: Tensor) -> Tensor:
        return base + (self._scale * update).to(base.dtype)


def _is_fallback(function: Any) -> bool:
    """Return whether a function is the grouped product of transformers, which it registers where torch's own cannot be used."""
    operator = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    return operator is not None and function in (operator, operator.default)


def _computed(value: Any) -> Any:
    if isinstance(value, LowRankSum):
        return value.dense()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_computed, value))
    return value


def _linear(x: Tensor, weight: LowRankSum, bias: Any = None) -> Tensor:
    base = F.linear(x, weight._weight, _computed(bias))
    left, right = weight._factors()
    return weight._added(base, F.linear(F.linear(x, right), left))


def _times(function: Callable[..., Tensor], x: Tensor, weight: LowRankSum) -> Tensor:
    """Compute ``x M``."""
    left, right = weight._factors()
    product = torch.matmul if left.dim() == 2 else function
    return weight._added(function(x, weight._weight), product(product(x, left), right))


def _applied(function: Callable[..., Tensor], weight: LowRankSum, x: Tensor) -> Tensor:
    """Compute ``M x``."""
    left, right = weight._factors()
    product = torch.matmul if left.dim() == 2 else function
    return weight._added(function(weight._weight, x), product(left, product(right, x)))


def _grouped(function: Callable[..., Tensor], x: Tensor, weight: LowRankSum, offs: Any = None, **rest: Any) -> Tensor:
    """Compute ``x M_e`` for rows sorted by expert e; `offs` are the ends of the groups."""
    base = function(x, weight._weight, offs=offs, **rest)
    left, right = weight._factors()
    if left.dim() == 2:  # one update for all experts
        return weight._added(base, x @ left @ right)
    missing = -left.shape[-1] % (_GROUPED_BYTES // left.dtype.itemsize)
    if missing:
        left, right = F.pad(left, (0, missing)), F.pad(right, (0, 0, 0, missing))
    low = function(x, left, offs=offs)
    return weight._added(base, function(low, right, offs=offs))
