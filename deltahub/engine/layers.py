"""Checks of the function that a layer computes, before a delta relies on it.

    linear        y = W x + b                    Linear, Conv1D
    look-up       y = c W[x]                     Embedding; c is its `embed_scale`, as in Gemma and BART, else 1
    norm          y = n(x) (o + w) + b           LayerNorm, RMSNorm; o is 1 in Gemma, else 0

A class name does not prove any of these, because a subclass may override forward. If the forward is not the original one, a
copy of the layer with random values is called once and its output is compared with the formula. The layer itself is neither
called nor changed.
"""

from __future__ import annotations

import copy
import inspect
import sys
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.substitution import is_installed
from deltahub.engine.weights import SomeRows, is_turned, linear_weight

_ROWS: Final = 4096  # the trial looks up all rows of a table of this size, and only some rows of a larger one
_EPS_NAMES: Final = ("eps", "variance_epsilon", "epsilon", "norm_eps", "layer_norm_eps")
_COMMON_EPS: Final = (1e-5, 1e-6, 1e-12, torch.finfo(torch.float32).eps, 0.0)


# ----- tensors -----


def reading_fault(layer: nn.Module, key: str = "weight") -> str:
    """Return why the values of a layer's tensor cannot be read as numbers, as a clause; empty if they can.

    A quantised weight of a known kind is read through `engine.quantised`; the codes of an unknown kind are not numbers.
    """
    if key == "weight" and (coded := quantised(layer)) is not None:
        return coded.fault()
    tensor = getattr(layer, key, None)
    if not isinstance(tensor, Tensor):
        return f"it has no {key}"
    if isinstance(tensor, (UninitializedBuffer, UninitializedParameter)):
        return f"its {key} has no shape before the first forward pass"
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:  # float8 values are codes, too
        return f"its {key} is kept as {tensor.dtype} codes (quantised) that cannot be read"
    if not _is_plain(tensor):
        return f"its {key} is a {type(tensor).__name__}, whose values are kept in a form of their own (quantised, say)"
    return ""


def training_fault(layer: nn.Module, tensor: Tensor) -> str:
    """Return why a tensor of a layer cannot be trained as it is, as a clause; empty if it can."""
    if is_constant(layer, tensor):
        return f"it holds whole numbers ({tensor.dtype}), which have no gradient"
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dtype.itemsize < 2:
        return f"it is kept as {tensor.dtype} codes (quantised)"
    if hasattr(tensor, "__tensor_flatten__") and not _is_plain(tensor):
        return f"it is a {type(tensor).__name__}, whose values are kept in a form of their own (quantised, say)"
    return ""


def is_constant(layer: nn.Module, tensor: Tensor) -> bool:
    """Return whether a tensor holds whole numbers that are plain values, such as a table of indices."""
    return not (tensor.is_floating_point() or tensor.is_complex()) and not is_quantised(layer)


def is_quantised(layer: nn.Module) -> bool:
    """Return whether a layer is of a quantised kind: a product or a look-up with a weight that it keeps as codes.

    PyTorch's own embedding looks its whole numbers up as they are.
    """
    if type(layer).__module__.startswith("transformers.integrations."):  # experts of MXFP4, say
        return True
    has_weight = any(hasattr(layer, name) for name in ("in_features", "in_channels", "embedding_dim"))
    return quantised(layer) is not None or (
        has_weight and type(layer) is not nn.Embedding and reading_fault(layer) != ""
    )


def writing_fault(layer: nn.Module, key: str = "weight", *, requantise: bool = False) -> str:
    """Return why new values cannot be written into a layer's tensor, as a clause; empty if they can.

    Args:
        requantise: whether a quantised weight may take them as new codes.
    """
    if key == "weight" and (coded := quantised(layer)) is not None:
        rounded = (
            f"its weight is quantised ({coded.name}), which would round the result to a few bits: merge(requantise=True) does so and "
            "tells the error, merged_copy(backbone, dtype=torch.bfloat16) gives a copy with plain weights"
        )
        return coded.requantise_fault() if requantise else coded.fault() or rounded
    if is_parametrized(layer, key):
        kinds = ", ".join(type(step).__name__ for step in layer.parametrizations[key])  # type: ignore[index]
        return f"its {key} is computed anew for every use, by the parametrization {kinds}"
    if isinstance(getattr(layer, key, None), Tensor) and layer._parameters.get(key) is None:
        return f"its {key} is not a parameter but computed from others (weight_norm, spectral_norm or pruning, say)"
    if fault := reading_fault(layer, key):
        return fault
    return f"its {key} has no values on this device (meta)" if layer._parameters[key].is_meta else ""  # type: ignore[union-attr]


def _is_plain(tensor: Tensor) -> bool:
    """Check that a tensor stores its values one by one: it is neither sparse nor a subclass that packs them."""
    kind = type(tensor)
    spread = kind.__module__.startswith(("torch.distributed.tensor", "torch._subclasses"))  # DTensor, FakeTensor
    return (kind in (Tensor, nn.Parameter) or spread) and tensor.layout is torch.strided


# ----- linear layers -----


def linear_fault(layer: nn.Module | SomeRows) -> str:
    """Return why a layer does not compute ``W x + b`` with its own values, as a clause; empty if it does."""
    layer = layer.layer if isinstance(layer, SomeRows) else layer
    if fault := reading_fault(layer):
        return fault
    if isinstance(layer, nn.Embedding):
        return "it is an Embedding"
    if (coded := quantised(layer)) is not None and coded.own_forward is not None:
        computes = _forward_of(layer) is coded.own_forward
    elif fault := _shape_fault(layer):
        return fault
    else:
        computes = _has_original_forward(layer) or bool(_trial_of_linear(layer))
    return "" if computes else f"{_own_forward(layer)}, and does not compute W x + b with its weight alone"


def weight_fault(layer: nn.Module | SomeRows) -> str:
    """Return why a layer does not compute ``W x + b`` or a convolution with its own values, as a clause; empty if it does."""
    if not isinstance(layer, _ConvNd):
        return linear_fault(layer)
    if layer.transposed:
        return "it is a transposed convolution, whose weight has another order"
    if type(layer)._conv_forward not in {kind._conv_forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}:
        return f"the convolution is {type(layer).__name__}'s own"
    return reading_fault(layer) or bias_fault(layer)


def update_fault(layer: nn.Module) -> str:
    """Return why no update can be added to a linear layer's output, as a clause; empty if it can.

    The output must have one value for each row of the weight. A quantised layer is trusted: it cannot be called without its kernels.
    """
    if isinstance(getattr(layer, "weight", None), UninitializedParameter):
        return reading_fault(layer)
    if _has_original_forward(layer) or _forward_of(layer) is None:
        return ""
    if quantised(layer) is not None or reading_fault(layer):
        return ""
    if fault := _shape_fault(layer):
        return fault
    if _trial_of_linear(layer) is None:
        return f"{_own_forward(layer)}, and does not return one tensor (..., n_out) for an input (..., n_in)"
    return ""


def _shape_fault(layer: nn.Module) -> str:
    shape = tuple(layer.weight.shape)  # type: ignore[arg-type]
    n_in, n_out = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if isinstance(n_in, int) and isinstance(n_out, int) and not is_turned(layer) and shape != (n_out, n_in):
        return f"its weight is {list(shape)}, not [{n_out}, {n_in}]"
    return "" if len(shape) == 2 else f"its weight is {list(shape)}, not a matrix"


def _has_original_forward(layer: nn.Module) -> bool:
    forward = _forward_of(layer)
    if forward in (nn.Linear.forward, nn.Embedding.forward, nn.LayerNorm.forward):
        return True
    module = sys.modules.get("transformers.pytorch_utils")
    return module is not None and forward is module.Conv1D.forward


def _trial_of_linear(layer: nn.Module) -> bool | None:
    """Check by a trial whether a layer computes ``W x + b``; None if it does not even return a tensor of that shape."""
    twin = _stand_in(layer)
    if twin is None:
        return None
    weight, bias = linear_weight(twin), twin._parameters.get("bias")
    x = _random((2, weight.shape[1]), 2) + 0.5
    expected = F.linear(x, weight, bias if bias is None or bias.dim() == 1 else None)
    output = _called(layer, twin, x)
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return None
    return _are_close(output, expected)


# ----- look-ups -----


def lookup_fault(layer: nn.Embedding) -> str:
    """Return why an embedding is not a lookup of its first argument times its `embed_scale`, as a clause; empty if it is."""
    if layer.max_norm is not None:
        return "it changes its own weight whenever it is called (max_norm)"
    if _forward_of(layer) is nn.Embedding.forward:
        return ""
    mistaken = f"{_own_forward(layer)}, and does not look its first argument up in its weight"
    twin = _stand_in(layer)
    if twin is None or len(_arguments(layer)) != 1:
        return mistaken
    if (coded := quantised(layer)) is not None:
        return "" if _forward_of(layer) is coded.own_forward else mistaken
    if reading_fault(layer):
        return ""  # of an unknown quantised kind: trusted
    special = {value for value in vars(layer).values() if type(value) is int and 0 <= value < layer.num_embeddings}
    some = range(layer.num_embeddings) if layer.num_embeddings <= _ROWS else sorted({0, 1, 2, *special})
    rows = torch.tensor(list(some))
    expected = F.embedding(rows, twin.weight)  # type: ignore[arg-type]
    scale = embed_scale(twin)
    output = _called(layer, twin, rows)
    same = isinstance(output, Tensor) and output.shape == expected.shape
    return "" if same and _are_close(output, expected if scale is None else expected * scale) else mistaken


def embed_scale(layer: nn.Module) -> Tensor | float | None:
    """Return the factor by which an embedding multiplies its rows; None if its class has none."""
    scale: Tensor | float | None = getattr(layer, "embed_scale", None)
    return scale


# ----- norms -----


@dataclass(frozen=True)
class NormForm:
    """The formula of a normalisation layer.

    Attributes:
        centred: whether the mean is subtracted, as LayerNorm does and RMSNorm does not.
        eps: added to the variance, or to the mean square.
    """

    centred: bool
    eps: float

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise over the last dimension, in float32 or wider: to mean 0 and variance 1, or to mean square 1."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.centred:
            return F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def norm_form(layer: nn.Module) -> NormForm | None:
    """Find by a trial the formula by which a layer normalises its only argument; None if neither formula fits.

    A gated norm, which takes a second argument, has neither form.
    """
    weight = layer._parameters.get("weight")
    named = isinstance(layer, nn.LayerNorm) or "Norm" in type(layer).__name__
    if weight is None or weight.dim() != 1 or not named or reading_fault(layer):
        return None
    twin = _stand_in(layer)
    if twin is None or len(_arguments(layer)) != 1:
        return None
    eps_values = [float(eps) for name in _EPS_NAMES if isinstance(eps := getattr(layer, name, None), (int, float))]
    for eps in eps_values or _COMMON_EPS:
        # Values as small as the root of eps determine eps; a mean other than 0 distinguishes LayerNorm from RMSNorm.
        draw = _random((3, weight.shape[0]), 2) + 0.5
        inputs = [draw, draw * max(eps, 1e-12) ** 0.5]
        outputs = [_called(layer, twin, x) for x in inputs]
        for form in (NormForm(True, eps), NormForm(False, eps)):
            if all(_is_norm_of(form, twin, x, output) for x, output in zip(inputs, outputs, strict=True)):
                return form
    return None


def _is_norm_of(form: NormForm, twin: nn.Module, x: Tensor, output: Any) -> bool:
    if not isinstance(output, Tensor) or output.shape != x.shape:
        return False
    weight, bias = twin._parameters["weight"], twin._parameters.get("bias")
    assert weight is not None
    n, shift = form.normalised(x), 0 if bias is None else bias
    return _are_close(output, n * weight + shift) or _are_close(output, n * (1 + weight) + shift)


# ----- biases -----


def bias_fault(layer: nn.Module) -> str:
    """Return why a layer's bias is not simply added to its output, as a clause; empty if it is."""
    forward = _forward_of(layer)
    if any(
        forward is vars(kind).get("forward") for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn.")
    ):
        return ""
    if norm_form(layer) is not None or not linear_fault(layer):
        return ""
    return f"{_own_forward(layer)}, and is not known to add the bias to its output"


# ----- trials -----


def _forward_of(layer: nn.Module) -> Any:
    """Return the function that computes a layer's output, without hooks that move its tensors; None if it is not known."""
    attributes = layer.__dict__
    if is_installed(layer):
        return type(layer).forward
    if "_hf_hook" in attributes and "_old_forward" in attributes:  # accelerate wraps the original forward
        forward = attributes["_old_forward"]
    elif "forward" in attributes:
        forward = attributes["forward"]
    else:
        return type(layer).forward
    return forward.__func__ if inspect.ismethod(forward) and forward.__self__ is layer else None


def _own_forward(layer: nn.Module) -> str:
    kind = type(layer).__name__
    return f"the forward of this {kind} was replaced" if "forward" in vars(layer) else f"its forward is {kind}'s own"


def _arguments(layer: nn.Module) -> list[str]:
    """Return the names of the arguments of a layer's forward."""
    return list(inspect.signature(_forward_of(layer)).parameters)[1:]


@torch.no_grad()
def _stand_in(layer: nn.Module) -> nn.Module | None:
    """Copy a layer with random float32 parameters on the CPU, in eval mode; None if its forward is not known."""
    if _forward_of(layer) is None:
        return None
    twin = copy.copy(layer)
    attributes = twin.__dict__
    attributes["training"] = False
    attributes["_parameters"] = {
        key: None if value is None else nn.Parameter(_random(tuple(value.shape), seed), requires_grad=False)
        for seed, (key, value) in enumerate(layer._parameters.items())
    }
    attributes["_buffers"] = {key: _buffer(value) for key, value in layer._buffers.items()}
    try:
        attributes["_modules"] = {
            key: child if child is None or key == "deltas" else copy.deepcopy(child).to("cpu", torch.float32)
            for key, child in layer._modules.items()
        }
    except Exception:  # noqa: BLE001  # for example a child without values
        return None
    return twin


def _buffer(value: Tensor | None) -> Tensor | None:
    if value is None:
        return None
    if value.is_meta:
        return _random(tuple(value.shape), 1).to(value.dtype)
    return value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)


def _random(shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw normal values; a matrix repeats them along each diagonal, which needs almost no memory."""
    draw = torch.Generator().manual_seed(seed)
    if len(shape) != 2:
        return torch.randn(shape, generator=draw)
    return torch.randn(sum(shape), generator=draw).as_strided(shape, (1, 1))


@torch.no_grad()
def _called(layer: nn.Module, twin: nn.Module, x: Tensor) -> Any:
    try:
        return _forward_of(layer)(twin, x)
    except Exception:  # noqa: BLE001  # a layer that cannot be called like this has another signature
        return None


def _are_close(output: Tensor, expected: Tensor) -> bool:
    error = (output.float() - expected).abs().max()
    return bool(error <= 1e-4 * expected.abs().max())  # False for a NaN
