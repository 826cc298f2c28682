"""The projections of `nn.MultiheadAttention`, which it computes itself from the weights, without calling a layer.

    q, k, v     rows of in_proj_weight, or q_proj_weight, k_proj_weight and v_proj_weight where key or value are of another width
    proj        out_proj.weight

So a delta on them acts on the attention as a whole: the output is computed anew with other weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.insertion import Args, Kwargs
from deltahub.engine.structure.layouts import Part, adjacent_parts
from deltahub.engine.structure.maps import MARK

PROJECTIONS: Final = (*adjacent_parts("q,k,v"), Part("proj", 0, 1, 1))
OUT: Final = "out_proj"
_ROWS: Final = ("q", "k", "v")


class _View:
    """Attributes of a layer, some of them with other values."""


def projection_names(name: str, commons: tuple[str, ...]) -> Iterator[tuple[str, Part]]:
    """Yield the names of an attention's projections, with the part of each: ``attn.q`` and ``attn@.q@``.

    Args:
        name: the real name of the attention.
        commons: its common names.
    """
    for part in PROJECTIONS:
        yield f"{name}.{part.label}", part
        for common in commons:
            yield f"{common}.{part.label}{MARK}", part


def projection_shape(layer: nn.MultiheadAttention, label: str) -> tuple[int, int]:
    """Return the input and the output width of a projection."""
    widths = {"k": layer.kdim, "v": layer.vdim}
    return int(widths.get(label) or layer.embed_dim), int(layer.embed_dim)


def is_called_as_written(layer: nn.MultiheadAttention) -> bool:
    """Return whether the forward of an attention is PyTorch's own."""
    return type(layer).forward is nn.MultiheadAttention.forward and "forward" not in vars(layer)


def changed_weights(
    layer: nn.MultiheadAttention, changes: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the weights of an attention with changes added, by parameter name; unchanged ones are left out.

    Args:
        changes: by label, ``(n_out, n_in)``.
        dtype: dtype of the sums.
    """
    weights: dict[str, Tensor] = {}
    if "proj" in changes:
        weights[f"{OUT}.weight"] = layer.out_proj.weight.to(dtype) + changes["proj"]
    if not layer._qkv_same_embed_dim:
        for label in changes.keys() & {*_ROWS}:
            name = f"{label}_proj_weight"
            weights[name] = getattr(layer, name).to(dtype) + changes[label]
    elif changes.keys() & {*_ROWS}:
        thirds = zip(_ROWS, layer.in_proj_weight.to(dtype).chunk(3), strict=True)
        weights["in_proj_weight"] = torch.cat([rows + changes[x] if x in changes else rows for x, rows in thirds])
    return weights


def output_with(
    layer: nn.MultiheadAttention, weights: Mapping[str, Tensor], args: Args, kwargs: Kwargs, dtype: torch.dtype
) -> Any:
    """Compute the output of an attention with some weights replaced; the layer is not changed.

    Args:
        weights: by parameter name, of type `dtype`.
        args: the positional arguments of the attention's forward; floating-point tensors are cast to `dtype`.
        kwargs: its keyword arguments, as well.
        dtype: dtype to compute in.
    """

    def wide(name: str) -> Tensor | None:
        value: Tensor | None = weights[name] if name in weights else _tensor(layer, name)
        return None if value is None else value.to(dtype)

    names = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v")
    options = ("embed_dim", "num_heads", "batch_first", "dropout", "add_zero_attn", "training", "merge_masks")
    view: Any = _View()  # of all that the forward reads of the layer
    for name in names:
        setattr(view, name, wide(name))
    for option in (*options, "_qkv_same_embed_dim"):
        setattr(view, option, getattr(layer, option))
    view.out_proj = _View()
    view.out_proj.weight, view.out_proj.bias = wide(f"{OUT}.weight"), wide(f"{OUT}.bias")
    casts: dict[int, Any] = {}  # equal arguments stay the same tensor: the forward asks for that

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return casts.setdefault(id(value), value.to(dtype))

    return nn.MultiheadAttention.forward(
        view, *(cast(value) for value in args), **{key: cast(value) for key, value in kwargs.items()}
    )


def _tensor(layer: nn.MultiheadAttention, name: str) -> Tensor | None:
    holder, _, key = name.rpartition(".")
    value: Tensor | None = getattr(layer.out_proj if holder else layer, key)
    return value
