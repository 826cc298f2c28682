"""The state of a quantised layer: each tensor and each setting that decides what it computes.

A layer may keep scales, zero points and code books outside its parameters and buffers: in the saved state only, as an attribute
of its weight, or in a dict of its own as HQQ does. They all belong to the fingerprint of the backbone.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from deltahub.engine.modules import own_modules
from deltahub.engine.offloading import stored_state

_WIDTHS: Final = ("in_features", "infeatures", "in_channels", "embedding_dim")
_PACKAGES: Final = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.", "torch.ao.nn.sparse.quantized.")
_NOT_STATE: Final = frozenset({*nn.Module().__dict__, "_hf_hook", "_old_forward", "_is_hf_initialized", "forward"})
_SIZES: Final = frozenset(
    {*_WIDTHS, "out_features", "outfeatures", "out_channels", "num_embeddings"}
)  # the shapes tell them
_DEPTH: Final = 4  # of attributes in attributes
_SCALARS: Final = (bool, int, float, str, torch.dtype, enum.Enum, type(None))


def is_quantised(layer: nn.Module) -> bool:
    """Return whether a layer keeps a weight as codes, of a kind that is known or not, or quantises it in every call."""
    if type(layer).__module__.startswith(_PACKAGES) or _threshold(layer) is not None:
        return True
    if type(layer) is nn.Embedding:
        return False
    tensors = {**layer._parameters, **layer._buffers}
    if any(is_composed(tensor) for tensor in tensors.values()):
        return True
    weight = tensors.get("weight")
    if weight is not None:
        return _is_code(weight)
    has_weight = any(hasattr(layer, name) for name in _WIDTHS)
    is_integration = type(layer).__module__.startswith("transformers.integrations.")  # experts of MXFP4, say
    return (has_weight or is_integration) and any(_is_code(t) for t in tensors.values() if t is not None)


def quantised_layers(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the quantised layers of a backbone by name."""
    return {name: module for name, module in own_modules(backbone) if is_quantised(module)}


def _is_code(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dtype.itemsize < 2


def is_composed(tensor: Any) -> bool:
    """Return whether a tensor is made of others that keep its values in another form, unlike a shard."""
    is_sharded = type(tensor).__module__.startswith(("torch.distributed.", "torch._subclasses"))
    return is_traceable_wrapper_subclass(tensor) and not is_sharded


def hidden_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a quantised layer besides its parameters and persistent buffers, by a name within the layer."""
    tensors = dict(_found("", _saved(layer)))
    own = {id(t) for t in (*layer._parameters.values(), *layer._buffers.values())}
    tensors |= {key: t for key in layer._non_persistent_buffers_set if (t := layer._buffers.get(key)) is not None}
    if not _is_of_bitsandbytes(layer):  # whose saved state is complete, while its attributes change in a forward pass
        attributes = {key: value for key, value in vars(layer).items() if _is_state(key)}
        found = _found("", attributes)
        tensors |= {key: t for key, t in found if id(t) not in own and key not in tensors}
    return tensors


def saved_tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a layer saves besides its parameters and buffers."""
    return ((key, value) for key, value in _saved(layer).items() if isinstance(value, Tensor))


def _saved(layer: nn.Module) -> dict[str, Any]:
    """Return a layer's saved state without its parameters and buffers."""
    saved: dict[str, Any] = dict(stored_state(layer))
    try:
        if not saved:
            layer._save_to_state_dict(saved, "", keep_vars=True)
    except NotImplementedError:  # bitsandbytes' embeddings cannot be saved, although they are used
        saved = _state_of_parameters(layer)
    return {key: value for key, value in saved.items() if key not in layer._parameters and key not in layer._buffers}


def _state_of_parameters(layer: nn.Module) -> dict[str, Any]:
    """Return what the weight of one of bitsandbytes' embeddings keeps as its attributes, as its linear layers save it."""
    weight: Any = layer._parameters["weight"]
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {"SCB": getattr(weight, "SCB", None)}


def _found(name: str, value: Any, depth: int = _DEPTH, visited: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a value, which may be a container or an object, each with the path to it."""
    if isinstance(value, Tensor):
        yield from _plain(name, value)
        return
    if depth == 0 or id(value) in visited or isinstance(value, (nn.Module, *_SCALARS)) or callable(value):
        return
    for key, member in _members(value):
        yield from _found(f"{name}.{key}" if name else key, member, depth - 1, (*visited, id(value)))


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        items = getattr(value, "__dict__", {}).items()
    return ((str(key), member) for key, member in items)


def _plain(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a tensor, or the codes and scales of one of PyTorch's own quantised dtypes, which have no bytes of their own."""
    if not tensor.is_quantized:
        yield name, tensor
        return
    yield f"{name}.codes", tensor.int_repr()
    if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
        yield f"{name}.scales", tensor.q_per_channel_scales()
        yield f"{name}.zero_points", tensor.q_per_channel_zero_points()
    else:
        yield f"{name}.scales", torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)


# ----- settings -----


def settings(layer: nn.Module) -> dict[str, Any]:
    """Return what decides the outputs of a quantised layer besides its tensors, as JSON values by name."""
    if _is_of_bitsandbytes(layer):
        return _settings_of_bitsandbytes(layer)
    options = {
        key: value for key, value in vars(layer).items() if _is_state(key) and key[:1] != "_" and key not in _SIZES
    }
    found = dict(_scalars(options))
    composed: dict[str, Any] = {key: t for key, t in {**layer._parameters, **layer._buffers}.items() if is_composed(t)}
    for key, tensor in composed.items():
        found[key] = _as_json(tensor.__tensor_flatten__()[1], _DEPTH)
    return found


def _scalars(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, (*_SCALARS, list, tuple, Mapping)) or dataclasses.is_dataclass(value):
            yield key, _as_json(value, _DEPTH)


def _as_json(value: Any, depth: int) -> Any:
    """Return a value as JSON without its tensors, which have leaves of their own."""
    if isinstance(value, _SCALARS):
        return _scalar(value)
    if depth == 0 or isinstance(value, (Tensor, nn.Module)) or callable(value):
        return type(value).__name__
    if isinstance(value, (list, tuple)):
        return [_as_json(member, depth - 1) for member in value]
    members = {key: _as_json(member, depth - 1) for key, member in _members(value)}
    return members if isinstance(value, Mapping) else {"class": type(value).__name__, **members}


def _scalar(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return repr(value) if isinstance(value, float) else value  # JSON has no infinity


def _is_state(name: str) -> bool:
    return name not in _NOT_STATE and not name.startswith("_deltahub")


def _is_of_bitsandbytes(layer: nn.Module) -> bool:
    weight = type(layer._parameters.get("weight")).__name__
    return weight in ("Params4bit", "Int8Params") or _threshold(layer) is not None


def _threshold(layer: nn.Module) -> float | None:
    """Return the threshold of LLM.int8 above which an input is multiplied in float16; None for other layers."""
    state = getattr(layer, "state", None)
    threshold = getattr(state, "threshold", None) if type(state).__name__ == "MatmulLtState" else None
    return threshold if isinstance(threshold, (int, float)) else None


def _settings_of_bitsandbytes(layer: nn.Module) -> dict[str, Any]:
    weight: Any = layer._parameters["weight"]
    state = getattr(weight, "quant_state", None) or getattr(layer, "quant_state", None)
    if state is None:
        return {"threshold": float(_threshold(layer) or 0), "on_the_fly": bool(weight.has_fp16_weights)}
    compute = getattr(layer, "compute_dtype", None)
    return {
        "quant_type": state.quant_type,
        "blocksize": state.blocksize,
        "nested": bool(state.nested),
        "compute_dtype": _as_json(compute, 1),
    }
