"""Heads of several deltas in one batch: backbone tensors for which each delta has its own value.

The backbone holds one of these values at a time. Here a layer that owns such a tensor computes some rows again, with the
value that they need; the backbone's parameters stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.engine.insertion import Args, Kwargs, first_input
from deltahub.engine.ledger import Entry, Ledger
from deltahub.engine.modules import own_modules
from deltahub.engine.overrides import ATTRIBUTE, Override
from deltahub.engine.shapes import is_conv1d
from deltahub.errors import RouteError

_Weights = Mapping[str, Tensor | None]


def _linear(layer: nn.Linear, x: Tensor, weights: _Weights) -> Tensor:
    weight = weights["weight"]
    assert weight is not None
    return F.linear(x, weight, weights["bias"])


def _conv1d(layer: nn.Module, x: Tensor, weights: _Weights) -> Tensor:
    weight, bias = weights["weight"], weights["bias"]
    assert weight is not None
    assert bias is not None
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)


def _layer_norm(layer: nn.LayerNorm, x: Tensor, weights: _Weights) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, weights["weight"], weights["bias"], layer.eps)


def _embedding(layer: nn.Embedding, x: Tensor, weights: _Weights) -> Tensor:
    weight = weights["weight"]
    assert weight is not None
    return F.embedding(x, weight, layer.padding_idx)


@dataclass(frozen=True, eq=False)
class Head:
    """A layer with the weights of a delta, or the backbone's own.

    Attributes:
        compute: computes the layer's output from its input and given weights.
        weights: by parameter name, those that differ from the layer's live ones.
        trained: a parameter whose gradient would be lost: tensor name, its delta, and the owner of the live value.
    """

    compute: Callable[[Any, Tensor, _Weights], Tensor]
    weights: Mapping[str, Tensor]
    trained: tuple[str, str, str] | None

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Return the layer's output for its input and these weights.

        Raises:
            RouteError: the weights are to train.
        """
        live = dict(target._parameters)
        if self.trained and target.training and torch.is_grad_enabled():
            name, own_delta, other_delta = self.trained
            if any(parameter is not None and live[key].requires_grad for key, parameter in self.weights.items()):  # type: ignore[union-attr]
                msg = (
                    f"{name} is trained by {own_delta!r} and by {other_delta!r}: heads of several deltas cannot be trained in one batch, "
                    "because the backbone holds one of them at a time. Train them in batches of their own, or freeze the head."
                )
                raise RouteError(msg)
        near = {key: weight.to(live[key]) for key, weight in self.weights.items()}  # the backbone may have been moved
        return self.compute(target, first_input(args, kwargs), {**live, **near})


def heads_of(
    backbone: nn.Module, ledger: Ledger, rows: Sequence[Entry | None]
) -> Iterator[tuple[str, nn.Module, tuple[Head | None, ...]]]:
    """Yield the layers whose weights differ between rows, or from their live weights.

    Args:
        rows: for each row its delta, or None for the bare backbone.

    Yields:
        Name, layer, and for each row its head, or None if the layer holds the right weights.

    Raises:
        RouteError: such a tensor belongs to a module that cannot compute rows with other weights.
    """
    deltas = {entry.serial: entry.name for entry in ledger.entries.values()}
    for address, module in own_modules(backbone):
        records = dict(module.__dict__.get(ATTRIBUTE, {}))
        if not records:
            continue
        heads: dict[tuple[int | None, ...], Head | None] = {}
        chosen = []
        for entry in rows:
            owners = tuple(_owner(entry, record) for record in records.values())
            if owners not in heads:
                heads[owners] = _head(address, module, records, owners, deltas)
            chosen.append(heads[owners])
        if any(chosen):
            yield address, module, tuple(chosen)


def _owner(entry: Entry | None, record: Override) -> int | None:
    return entry.serial if entry is not None and entry.serial in record.values else None


def _head(
    address: str,
    module: nn.Module,
    records: Mapping[str, Override],
    owners: Sequence[int | None],
    deltas: Mapping[int, str],
) -> Head | None:
    """Build the head of a module from the values of some deltas, by serial number; None if the module holds them."""
    weights: dict[str, Tensor] = {}
    trained = None
    for (key, record), owner in zip(records.items(), owners, strict=True):
        if owner == record.owner:
            continue
        value = record.base if owner is None else record.values[owner]
        assert value is not None  # only the live value is not stored
        weights[key] = value
        if owner is not None:
            holder = "the backbone" if record.owner is None else deltas.get(record.owner, "a delta of another handle")
            trained = (f"{address}.{key}", deltas[owner], holder)
    return Head(_compute(address, module, records), weights, trained) if weights else None


def _compute(
    address: str, module: nn.Module, records: Mapping[str, Override]
) -> Callable[[Any, Tensor, _Weights], Tensor]:
    """Return the function that computes a module with other weights.

    Raises:
        RouteError: there is none for this module.
    """
    own_forward = type(module).forward
    if not records.keys() & module._buffers.keys():
        for kind, compute in _KINDS.items():
            if own_forward is kind.forward and isinstance(module, kind) and not getattr(module, "max_norm", None):
                return compute
        if is_conv1d(module):
            return _conv1d
    name = f"{address}.{next(iter(records))}"
    msg = (
        f"{name} has a value of its own in some of these deltas, and belongs to a {type(module).__name__}, which cannot "
        "compute rows with several. Expected a Linear, Conv1D, LayerNorm or Embedding. Run these deltas in batches of their own."
    )
    raise RouteError(msg)


_KINDS: Final[Mapping[type[nn.Module], Callable[[Any, Tensor, _Weights], Tensor]]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
