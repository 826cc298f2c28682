"""The fingerprint of a model: xxh3-128 of each tensor's bytes, without a copy of contiguous tensors in CPU memory.

The definition is in `deltahub.checkpoint.backbone_record`. Other tensors pass through a buffer of 16 MB.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import torch
import xxhash
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from deltahub.checkpoint.backbone_record import QUANTISED_VERSION, VERSION, Fingerprint, Leaf
from deltahub.engine.modules import modules_by_name, own_modules, own_parameters
from deltahub.engine.offloading import offloaded
from deltahub.engine.overrides import own_values, refuse_requantised
from deltahub.engine.quantised.record import quantised_weights
from deltahub.engine.quantised.state import hidden_tensors, quantised_layers, saved_tensors
from deltahub.engine.sharding import full_tensor
from deltahub.errors import DeltaHubError

BUFFER: Final = 16 << 20  # bytes copied at a time


def fingerprint(
    backbone: nn.Module,
    without: Collection[str] = (),
    version: int | None = None,
) -> Fingerprint:
    """Compute the fingerprint of a backbone's own parameters and persistent buffers; deltas do not count.

    Args:
        without: names of tensors to leave out: those that a delta replaces.
        version: 1 or 2 to cover only what records of that version cover (`deltahub.checkpoint.backbone_record`); by default, the
            version for this backbone.

    Raises:
        DeltaHubError: a tensor is on the meta device and has no bytes.
        MergeError: a delta is merged into the codes of a quantised layer.
    """
    refuse_requantised(backbone)
    layers = quantised_layers(backbone)
    version = version or (QUANTISED_VERSION if layers else VERSION)
    # First, since bitsandbytes unpacks the codes of some layers when it is asked for their state.
    others = list(_other_state(backbone, layers if version >= QUANTISED_VERSION else {})) if version > 1 else []
    leaves: list[Leaf] = []
    for name, tensor in own_state(backbone, without):
        if version > 1 or _is_in_version_1(tensor):
            leaves += _leaves(name, tensor, version)
    for name, tensor in others:
        leaves += _leaves(name, tensor, version)
    leaves.sort()
    return Fingerprint(tuple(leaves), version, quantised_weights(layers, leaves))


def own_state(backbone: nn.Module, without: Collection[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield each of the backbone's own tensors with its own values, fetched where they are offloaded or sharded."""
    originals, elsewhere = own_values(backbone), offloaded(backbone)
    for name, tensor in backbone_tensors(backbone):
        if name not in without:
            fetch = elsewhere.get(name)
            value = originals[name] if name in originals else tensor if fetch is None else fetch()
            # A value saved before the backbone was cast counts as cast with it.
            yield name, full_tensor(value).to(tensor.dtype)


def missing_from_version_1(backbone: nn.Module, without: Collection[str] = ()) -> list[str]:
    """Return the names of the tensors that version 1 leaves out."""
    buffers = [name for name, tensor in backbone_tensors(backbone) if not _is_in_version_1(tensor)]
    return [name for name in (*buffers, *(name for name, _ in _other_state(backbone, {}))) if name not in without]


def _is_in_version_1(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) or tensor.is_floating_point()


def backbone_values(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the backbone's own value of each tensor, even where deltas replaced it or were merged into it."""
    originals = own_values(backbone)
    for name, tensor in backbone_tensors(backbone):
        # A value saved before the backbone was moved or cast counts as moved and cast with it.
        yield name, originals[name].to(tensor.device, tensor.dtype) if name in originals else tensor


def backbone_tensors(
    backbone: nn.Module, modules: Mapping[str, nn.Module] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield a backbone's own parameters and persistent buffers; tied tensors once, under their first name.

    Args:
        modules: the backbone's modules by name, if they are known.
    """
    tied: Any = getattr(backbone, "all_tied_weights_keys", None) or {}
    modules = modules_by_name(backbone) if modules is None else modules
    for name, parameter in own_parameters(modules):
        if not (parameter.is_meta and name in tied):  # accelerate unties the tensors it offloads
            yield name, parameter
    yielded_buffers: set[Tensor] = set()
    for prefix, module in modules.items():
        for key, buffer in module._buffers.items():
            is_persistent = key not in module._non_persistent_buffers_set
            name = f"{prefix}.{key}" if prefix else key
            if is_persistent and buffer is not None and buffer not in yielded_buffers:
                yielded_buffers.add(buffer)
                yield name, buffer


def _other_state(backbone: nn.Module, quantised: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that modules save besides parameters and buffers, such as the scales of bitsandbytes' codes.

    Args:
        quantised: the layers, by name, of which tensors that are not saved are wanted too.
    """
    for prefix, module in own_modules(backbone):
        tensors: Iterable[tuple[str, Tensor]] = ()
        if prefix in quantised:
            tensors = hidden_tensors(module).items()
        elif type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
            tensors = saved_tensors(module)
        for key, value in tensors:
            yield (f"{prefix}.{key}" if prefix else key), value


def _leaves(name: str, tensor: Tensor, version: int) -> Iterator[Leaf]:
    """Yield one leaf, or one for each part of a tensor composed of others, such as torchao's."""
    wrapper: Any = tensor
    if version > 1 and is_traceable_wrapper_subclass(wrapper):
        for part in wrapper.__tensor_flatten__()[0]:
            yield from _leaves(f"{name}.{part}", getattr(wrapper, part), version)
    else:
        yield leaf_of(name, tensor)


def leaf_of(name: str, tensor: Tensor) -> Leaf:
    """Return the entry of one plain tensor in a fingerprint.

    Raises:
        DeltaHubError: it is on the meta device and has no bytes.
    """
    if tensor.is_meta:
        msg = f"{name} is on the meta device and has no values. Load the backbone's weights before the delta."
        raise DeltaHubError(msg)
    return Leaf(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), _hash(tensor.detach()))


def _hash(tensor: Tensor) -> str:
    state = xxhash.xxh3_128()
    for piece in _pieces(tensor):
        row = piece.as_strided((piece.numel(),), (1,))  # not reshape: a single element may have any stride
        state.update(row.view(torch.uint8).numpy().data)  # as bytes: NumPy does not support bfloat16
    return state.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the values in row-major order, as contiguous CPU tensors."""
    if tensor.numel() == 0:
        return
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        yield tensor
        return
    if tensor.dim() == 0:
        yield tensor.cpu()
        return
    row_bytes = max(1, tensor.nbytes // tensor.shape[0])
    if row_bytes > BUFFER and tensor.dim() > 1:
        for row in tensor:
            yield from _pieces(row)
        return
    for rows in torch.split(tensor, max(1, BUFFER // row_bytes)):
        yield rows.cpu().contiguous()
