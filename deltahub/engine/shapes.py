"""Widths of modules: read from their attributes, or else observed in a pseudo forward pass on the meta device.

The pseudo forward pass runs a copy of the backbone without values, so it costs no memory, no randomness and hardly any time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from deltahub.engine.dummy_inputs import possible_inputs
from deltahub.engine.insertion import first_input, map_hidden
from deltahub.engine.modules import module_at, modules_by_name, own_modules
from deltahub.engine.offloading import hooks, without_hooks
from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.quantised.plain import replace
from deltahub.engine.site import uncompiled
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap
from deltahub.engine.structure.tree import linear_width
from deltahub.errors import TargetError

# The implementations of attention and experts in transformers that never read a value, which a meta tensor cannot give.
_BLIND: Final = {"_attn_implementation": "eager", "_experts_implementation": "batched_mm"}


class _ProbeFinished(Exception):
    """The signal that every requested width is known, so that the rest of the forward pass can be skipped."""


def linear_shape(name: str, module: nn.Module) -> tuple[int, int]:
    """Return the input and output width of a linear layer, a Conv1D of transformers, or an embedding.

    Returns:
        ``(n_in, n_out)``; an embedding counts its rows as inputs.

    Raises:
        TargetError: the module is none of these; the message names a linear layer inside it, if there is one.
    """
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if is_conv1d(module):
        n_in, n_out = _shape(module)
        return n_in, n_out
    widths = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(widths[0], int) and isinstance(widths[1], int):
        return widths[0], widths[1]
    if (coded := quantised(module)) is not None:
        return coded.shape[1], coded.shape[0]
    msg = f"{name} is a {type(module).__name__}; expected a Linear, a Conv1D or an Embedding.{_hint(name, module)}"
    raise TargetError(msg)


def _hint(name: str, module: nn.Module) -> str:
    """Return advice on what to address instead of a module without a width: a called layer inside it, if there is one."""
    if isinstance(module, nn.MultiheadAttention):
        return " It reads its weights itself and calls no layer inside it. Leave it out, or put an adapter on it."
    if isinstance(module, _ConvNd):
        return " A convolution is none of these (Conv1D is transformers' linear layer). Leave it out, or use LoRA or BitFit."
    for key, child in module.named_modules():
        if isinstance(child, nn.Linear) and not isinstance(child, NonDynamicallyQuantizableLinear):
            return f" Address {name}.{key} instead."
    return ""


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is transformers' Conv1D: a linear layer whose weight is ``(n_in, n_out)``."""
    if type(module) is nn.Linear or not any(kind.__name__ == "Conv1D" for kind in type(module).__mro__):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2


def _shape(module: nn.Module) -> tuple[int, ...]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)


def channel_dimension(module: nn.Module) -> int | None:
    """Return the channel dimension of a layer's output if that is not the last one, else None."""
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size)
    if isinstance(module, _InstanceNorm):
        return -module._get_no_batch_dim()  # type: ignore[no-untyped-call, no-any-return]
    return 1 if isinstance(module, (_NormBase, nn.GroupNorm)) else None


def known_width(module: nn.Module) -> int | None:
    """Return the width of a module's output if its attributes reveal it, else None."""
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if is_conv1d(module):
        return _shape(module)[1]
    if isinstance(module, nn.MultiheadAttention):
        return int(module.embed_dim)
    for attribute in ("out_features", "out_channels", "num_channels", "num_features"):
        if (attribute == "out_features" or channel_dimension(module) is not None) and isinstance(
            width := getattr(module, attribute, None), int
        ):
            return width
    if (coded := quantised(module)) is not None:
        return coded.shape[0]
    return _norm_width(module)


def _norm_width(module: nn.Module) -> int | None:
    weight = getattr(module, "weight", None)
    is_scale = isinstance(weight, Tensor) and weight.dim() == 1
    return len(cast("Tensor", weight)) if is_scale and type(module).__name__.endswith("Norm") else None


def output_widths(backbone: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return the width of the hidden state that each module returns: the last size of its output.

    Args:
        modules: modules of the backbone by name.

    Raises:
        TargetError: a module does not reveal its width, and the pseudo forward pass did not reach it.
    """
    widths = {name: known_width(module) for name, module in modules.items()}
    if None in widths.values():
        widths |= _widths_inside(backbone, [name for name, width in widths.items() if width is None])
    unknown = [name for name, width in widths.items() if width is None]
    probed_widths = _probe(backbone, unknown) if unknown else {}
    return {name: width if width is not None else probed_widths[name] for name, width in widths.items()}


def input_widths(backbone: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return the width of the hidden state that each module receives: the last size of its first input.

    Args:
        modules: modules of the backbone by name.

    Raises:
        TargetError: a module does not reveal its width, and the pseudo forward pass did not reach it.
    """
    structure = StructureMap.of(backbone)
    widths: dict[str, int | None] = {}
    for name, module in modules.items():
        widths[name] = structure.guess.widths_in.get(name)
        if widths[name] is None and (shape := linear_width(module) or _first_inside(structure, name, module)):
            widths[name] = shape[0]
    unknown = [name for name, width in widths.items() if width is None]
    probed_widths = _probe(backbone, unknown, of_inputs=True) if unknown else {}
    return {name: width if width is not None else probed_widths[name] for name, width in widths.items()}


def _first_inside(structure: StructureMap, name: str, module: nn.Module) -> tuple[int, int] | None:
    """Return the shape of the first layer of an attention or feed-forward, found by its common name."""
    common = structure.common_name(name)
    first = {f"{common}.{part}{MARK}" for part in ("q", "q,k,v", "qkv", "w1", "gate", "gate,w1", "w1,gate")}
    inside = (
        linear_width(inner)
        for inner_name, inner in module.named_modules(prefix=name)
        if structure.common_name(inner_name) in first
    )
    return next(filter(None, inside), None)


def _widths_inside(backbone: nn.Module, names: Collection[str], within: str = "") -> dict[str, int]:
    """Return the widths of attentions and feed-forwards: those of their last layers, found by common name.

    Args:
        within: prefix of that common name: ``attn@.`` gives the widths of blocks.
    """
    structure = StructureMap.of(backbone)
    widths = {name: structure.guess.widths[name] for name in names if name in structure.guess.widths}
    for name in names:
        common = f"{structure.common_name(name)}.{within}"
        last = {f"{common}proj{MARK}", f"{common}w2{MARK}"}
        for inner, module in structure.modules.items():
            if (
                inner.startswith(f"{name}.")
                and structure.common_name(inner) in last
                and (shape := linear_width(module))
            ):
                widths[name] = shape[1]
    return widths


def _probe(backbone: nn.Module, names: Collection[str], *, of_inputs: bool = False) -> dict[str, int]:
    clone = meta_copy(backbone).eval()
    widths: dict[str, int] = {}

    def watch(name: str) -> Any:
        def see(hidden: Tensor) -> Tensor:
            widths[name] = hidden.shape[-1]
            return hidden

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            map_hidden(first_input(args, kwargs) if of_inputs else output, see)
            if len(widths) == len(names):
                raise _ProbeFinished

        return hook

    modules = modules_by_name(clone)
    for name in names:
        modules[name].register_forward_hook(watch(name), with_kwargs=True)
    failure = _run(clone, backbone)
    refused = isinstance(failure, TargetError)
    if len(widths) < len(names) and failure and not refused:
        _run(clone.bfloat16(), backbone)  # some kernels of mixtures of experts support only this precision
    missing = [name for name in names if name not in widths]
    if missing and not refused:  # a block adds its attention's output to its input, so their widths agree
        widths |= _widths_inside(backbone, missing, f"attn{MARK}.")
    if missing := [name for name in names if name not in widths]:
        why = f"failed: {failure}" if failure else "never called it"
        msg = (
            f"The width of {missing[0]} ({type(modules[missing[0]]).__name__}) is not known: the module does not tell it, "
            f"and a pseudo forward {why}. Address a layer inside it, such as its last Linear or LayerNorm."
        )
        raise TargetError(msg) from failure
    return widths


def _run(clone: nn.Module, backbone: nn.Module) -> Exception | None:
    """Try each set of inputs until every width is seen, and return the first failure."""
    failure: Exception | None = None
    precision = next((p.dtype for p in clone.parameters() if p.is_floating_point()), None)
    for inputs in possible_inputs(backbone):
        cast = {key: value.to(precision) if value.is_floating_point() else value for key, value in inputs.items()}
        try:
            with torch.no_grad():
                clone(**cast)
        except (_ProbeFinished, TargetError) as done:  # TargetError: an output holds no hidden state
            return done if isinstance(done, TargetError) else None
        except Exception as error:  # noqa: BLE001  # a model can raise anything on dummy inputs
            failure = failure or error
    return failure


def meta_copy(backbone: nn.Module) -> nn.Module:
    """Return a copy of a backbone whose tensors have shapes but no values; quantised layers are plain in it."""
    memo: dict[int, Any] = {}
    for parameter in backbone.parameters():
        memo[id(parameter)] = nn.Parameter(_empty(parameter.shape, parameter.dtype), requires_grad=False)
    for buffer in backbone.buffers():
        memo[id(buffer)] = _empty(buffer.shape, buffer.dtype)
    for hook in hooks(backbone):
        memo[id(hook)] = hook
    clone = without_hooks(copy.deepcopy(backbone, memo))
    for name, module in own_modules(backbone):
        if (coded := quantised(module)) is not None:
            weight = nn.Parameter(_empty(coded.shape, coded.compute_dtype), requires_grad=False)
            replace(module_at(clone, name), coded, weight)
    for module in list(clone.modules()):
        for key, child in module._modules.items():
            module._modules[key] = None if child is None else uncompiled(child)
    config: Any = getattr(clone, "config", None)
    for key, value in _BLIND.items():
        if hasattr(config, key):
            setattr(config, key, value)
    return clone


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def split_width(width: int, factor: int) -> tuple[int, int]:
    """Split a width into two factors: the smaller one first, except that a `factor` that divides the width is the first."""
    if factor > 0 and width % factor == 0:
        return factor, width // factor
    largest = min(factor, math.isqrt(width)) if factor > 0 else math.isqrt(width)
    first = max(size for size in range(1, largest + 1) if width % size == 0)
    return first, width // first
