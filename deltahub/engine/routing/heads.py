"""Heads of several deltas in one batch: backbone tensors of which each delta has a value of its own.

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
from deltahub.engine.ledger import Entry, Ledger, tensor_called
from deltahub.engine.modules import own_modules
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
    """A layer with the weights of one delta, or the backbone's own.

    Attributes:
        compute: what the layer does with its input and given weights.
        weights: by parameter name, those that differ from what the layer holds.
        trained: a parameter whose gradient would be lost, and whose: tensor name and delta names.
    """

    compute: Callable[[Any, Tensor, _Weights], Tensor]
    weights: Mapping[str, Tensor]
    trained: tuple[str, str, str] | None

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """What the layer returns for its input with these weights.

        Raises:
            RouteError: the weights are to train.
        """
        live = dict(target._parameters)
        if self.trained and target.training and torch.is_grad_enabled():
            name, mine, other = self.trained
            if any(parameter is not None and live[key].requires_grad for key, parameter in self.weights.items()):  # type: ignore[union-attr]
                msg = (
                    f"{name} is trained by {mine!r} and by {other!r}: heads of several deltas cannot be trained in one batch, "
                    "because the backbone holds one of them at a time. Train them in batches of their own, or freeze the head."
                )
                raise RouteError(msg)
        near = {key: weight.to(live[key]) for key, weight in self.weights.items()}  # the backbone may have been moved
        return self.compute(target, first_input(args, kwargs), {**live, **near})


def heads_of(
    backbone: nn.Module, ledger: Ledger, rows: Sequence[Entry | None]
) -> Iterator[tuple[str, nn.Module, tuple[Head | None, ...]]]:
    """The layers whose weights differ between the rows or from what they hold.

    Args:
        rows: for each row its delta, or None for the bare backbone.

    Returns:
        Name, layer, and for each row its head, or None where the layer holds the right weights.

    Raises:
        RouteError: a module that is no such layer owns such a tensor.
    """
    for address, module, names in _owners(backbone, ledger):
        made: dict[tuple[str | None, ...], Head | None] = {}
        chosen = []
        for entry in rows:
            owners = tuple(_owner(entry, name) for name in names.values())
            if owners not in made:
                made[owners] = _head(module, ledger, dict(zip(names, owners, strict=True)), names)
            chosen.append(made[owners])
        if any(chosen):
            yield address, module, tuple(chosen)


def _owners(backbone: nn.Module, ledger: Ledger) -> Iterator[tuple[str, nn.Module, dict[str, str]]]:
    """Every module that holds a replaced tensor, also under another name, with these: own name to the name it is kept by."""
    kept = {id(tensor_called(backbone, name)): name for name in ledger.base}
    if not kept:
        return
    for address, module in own_modules(backbone):
        held = {**module._parameters, **module._buffers}
        names = {key: kept[id(tensor)] for key, tensor in held.items() if id(tensor) in kept}
        if names:
            yield address, module, names


def _owner(entry: Entry | None, name: str) -> str | None:
    return entry.name if entry is not None and name in entry.replaced else None


def _head(module: nn.Module, ledger: Ledger, owners: Mapping[str, str | None], names: Mapping[str, str]) -> Head | None:
    weights: dict[str, Tensor] = {}
    trained = None
    for key, owner in owners.items():
        name = names[key]
        if owner == (holder := ledger.in_force.get(name)):
            continue
        value = ledger.base[name] if owner is None else ledger.entries[owner].replaced[name]
        assert value is not None  # None stands for the value in force, and that is another's
        weights[key] = value
        if owner is not None:
            trained = (name, owner, holder or "the backbone")
    return Head(_compute(module, names), weights, trained) if weights else None


def _compute(module: nn.Module, names: Mapping[str, str]) -> Callable[[Any, Tensor, _Weights], Tensor]:
    """How to compute a module with other weights.

    Raises:
        RouteError: it is not known.
    """
    own_forward = type(module).forward
    if not names.keys() & module._buffers.keys():
        for kind, compute in _KINDS.items():
            if own_forward is kind.forward and isinstance(module, kind) and not getattr(module, "max_norm", None):
                return compute
        if is_conv1d(module):
            return _conv1d
    name = next(iter(names.values()))
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
