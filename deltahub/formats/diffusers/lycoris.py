"""Conversion of LoHa and LoKr as LyCORIS saves them: they become a `weight_update` with the same tensors.

LoHa    dW = s (A_1 B_1) * (A_2 B_2)      s = alpha / r
LoKr    dW = s (C kron D)                 s = alpha / r; 1 if both C and D are whole, whatever the file's alpha

Yeh et al. 2024, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", https://arxiv.org/abs/2309.14859
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from deltahub.engine.shapes import split_width
from deltahub.engine.weights import is_turned
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.diffusers.parts import WAY_OUT, layer_shape
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter
from deltahub.formats.peft.update_reading import weight_update

Options = dict[str, Any]


def loha(adapter: SavedAdapter, alphas: Mapping[str, float]) -> Converted:
    """Convert a LoHa.

    Args:
        adapter: its tensors by layer.
        alphas: the alpha of each layer; empty if the file has none.

    Raises:
        CheckpointError: a tensor is missing, or does not fit its layer.
        ConfigError: no delta computes the same.
    """

    def read(adapter: SavedAdapter, layer: str) -> tuple[Options, dict[str, Tensor]]:
        leaves, shape = _leaves(adapter, layer)
        cores = {leaf for leaf in leaves if leaf.startswith("hada_t")}
        rank, tucker = len(_required(leaves, "hada_w1_b", layer)), bool(cores)
        (n_out, n_in), kernel = shape[:2], shape[2:]
        factors = ((rank, n_out), (rank, n_in)) if tucker else ((n_out, rank), (rank, n_in * math.prod(kernel)))
        expected: dict[str, tuple[int, ...]] = {
            f"hada_w{number}_{side}": size for number in (1, 2) for side, size in zip("ab", factors, strict=True)
        }
        if tucker:
            expected |= {f"hada_t{number}": (rank, rank, *kernel) for number in (1, 2)}
        _require(leaves, expected, layer)
        return {"r": rank, "alpha": alphas.get(layer, float(rank)), "tucker": tucker}, leaves

    return weight_update("loha", read)(adapter)


def lokr(adapter: SavedAdapter, alphas: Mapping[str, float]) -> Converted:
    """Convert a LoKr: see `loha`."""

    def read(adapter: SavedAdapter, layer: str) -> tuple[Options, dict[str, Tensor]]:
        leaves, shape = _leaves(adapter, layer)
        whole = ["lokr_w1" in leaves, "lokr_w2" in leaves]
        tucker = "lokr_t2" in leaves
        first, second = _sizes(leaves, 1, shape, layer), _sizes(leaves, 2, shape, layer)
        ranks = {len(leaves[f"lokr_w{n}_b"]) for n in (1, 2) if not whole[n - 1]} or {max(second)}
        rank = max(ranks)
        options = {
            "r": rank,
            "alpha": float(rank) if all(whole) else alphas.get(layer, float(rank)),
            "decompose_both": not whole[0],
            "decompose_factor": _factor(shape, first, second, layer),
            "tucker": tucker,
        }
        expected = _expected(options, shape, first, second)
        if len(ranks) > 1 or [name in expected for name in ("lokr_w1", "lokr_w2")] != whole:
            raise _unusual(layer)
        _require(leaves, expected, layer)
        return options, leaves

    return weight_update("lokr", read)(adapter)


def _leaves(adapter: SavedAdapter, layer: str) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Return the tensors of a layer, which are all of the method, and the shape of its weight."""
    if is_turned(adapter.layer(layer)):
        msg = f"The file acts on {layer}, a {type(adapter.layer(layer)).__name__}, on which LyCORIS has no update. {WAY_OUT}"
        raise ConfigError(msg)
    leaves = {leaf: tensor for (place, leaf), tensor in adapter.leaves.items() if place == layer}
    shape = layer_shape(layer, adapter.names)
    if any(leaf.partition("_")[2].startswith("t") for leaf in leaves) and len(shape) != 4:
        msg = f"The file has a core for {layer}, whose weight is {list(shape)}; expected the kernel of a Conv2d. Fetch it again."
        raise CheckpointError(msg)
    return leaves, shape


def _required(leaves: Mapping[str, Tensor], leaf: str, layer: str) -> Tensor:
    if leaf not in leaves:
        msg = f"The file has only a part of the update of {layer}: its {leaf} is missing. Fetch it again."
        raise CheckpointError(msg)
    return leaves[leaf]


def _require(leaves: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], layer: str) -> None:
    """Refuse tensors of a layer that are missing, unexpected or of another shape."""
    for leaf, shape in expected.items():
        if tuple(_required(leaves, leaf, layer).shape) != shape:
            msg = (
                f"The file's {leaf} for {layer} is {list(leaves[leaf].shape)}, expected {list(shape)}. Fetch it again."
            )
            raise CheckpointError(msg)
    if extra := sorted(leaves.keys() - expected.keys()):
        msg = f"The file has {extra[0]} for {layer}, which does not belong to its other tensors. Fetch it again."
        raise CheckpointError(msg)


# ----- LoKr -----


def _sizes(leaves: Mapping[str, Tensor], number: int, shape: tuple[int, ...], layer: str) -> tuple[int, int]:
    """Return the widths of a factor of LoKr, without the sizes of the kernel."""
    name, kernel = f"lokr_w{number}", math.prod(shape[2:])
    if name in leaves:
        whole = leaves[name]
        return (len(whole), whole.shape[1]) if whole.dim() >= 2 else (0, 0)
    up, down = (_required(leaves, f"{name}_{side}", layer) for side in "ab")
    if up.dim() != 2 or down.dim() != 2:
        return 0, 0
    if number == 2 and "lokr_t2" in leaves:
        return up.shape[1], down.shape[1]
    return len(up), down.shape[1] // (kernel if number == 2 else 1)


def _expected(
    options: Options, shape: tuple[int, ...], first: tuple[int, int], second: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that LoKr has with these options."""
    rank, kernel = options["r"], shape[2:]
    (out_1, in_1), (out_2, in_2) = first, second
    expected: dict[str, tuple[int, ...]] = {"lokr_w1": (out_1, in_1)}
    if options["decompose_both"] and rank < max(first) / 2:
        expected = {"lokr_w1_a": (out_1, rank), "lokr_w1_b": (rank, in_1)}
    if rank >= max(second) / 2:
        return {**expected, "lokr_w2": (out_2, in_2, *kernel)}
    if options["tucker"]:
        return {**expected, "lokr_t2": (rank, rank, *kernel), "lokr_w2_a": (rank, out_2), "lokr_w2_b": (rank, in_2)}
    return {**expected, "lokr_w2_a": (out_2, rank), "lokr_w2_b": (rank, in_2 * math.prod(kernel))}


def _factor(shape: tuple[int, ...], first: tuple[int, int], second: tuple[int, int], layer: str) -> int:
    """Return the option by which the widths of a weight are split as in the file.

    Raises:
        CheckpointError: the factors do not multiply to the weight.
        ConfigError: no option splits them so.
    """
    n_out, n_in = shape[:2]
    if (first[0] * second[0], first[1] * second[1]) != (n_out, n_in):
        msg = f"The factors of the LoKr on {layer} are {list(first)} and {list(second)}, which do not make its weight {list(shape)}. Fetch it again."
        raise CheckpointError(msg)
    for factor in _candidates(first):
        if (split_width(n_out, factor)[0], split_width(n_in, factor)[0]) == first:
            return factor
    raise _unusual(layer)


def _candidates(first: tuple[int, int]) -> Iterator[int]:
    """Yield the usual options first."""
    yield -1
    yield from first
    yield from range(2, 2 * max(first))


def _unusual(layer: str) -> ConfigError:
    msg = f"The file splits the weight of {layer} in a way that DeltaHub's LoKr has no option for (unbalanced_factorization, say). {WAY_OUT}"
    return ConfigError(msg)
