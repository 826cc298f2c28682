"""Taking the fingerprint of a model: xxh3-128 of each tensor's bytes, without a copy where the bytes lie in CPU memory.

The definition is in `deltahub.backbone`. Tensors elsewhere, or not contiguous, pass through a buffer of 16 MB.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

import torch
import xxhash
from torch import Tensor, nn

from deltahub.backbone import Fingerprint, Leaf
from deltahub.engine.modules import own_modules, own_parameters
from deltahub.engine.sharding import whole
from deltahub.errors import DeltaHubError

BUFFER: Final = 16 << 20  # bytes copied at a time


def fingerprint(
    backbone: nn.Module, without: Collection[str] = (), instead: Mapping[str, Tensor] | None = None
) -> Fingerprint:
    """The fingerprint of a backbone's own parameters and persistent floating-point buffers; deltas do not count.

    Args:
        without: names of tensors to leave out: those that a delta replaces.
        instead: tensors to take in place of the backbone's, by name: what other deltas have replaced.

    Raises:
        DeltaHubError: a tensor is on the meta device and has no bytes.
    """
    instead = instead or {}
    tensors = ((name, tensor) for name, tensor in backbone_tensors(backbone) if name not in without)
    # A tensor that was put aside before the backbone was cast counts as cast with it.
    return Fingerprint(tuple(sorted(_leaf(name, whole(instead.get(name, t)).to(t.dtype)) for name, t in tensors)))


def backbone_tensors(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A backbone's own parameters and persistent floating-point buffers; tied tensors once, under their first name."""
    yield from own_parameters(backbone)
    seen: set[Tensor] = set()
    for prefix, module in own_modules(backbone):
        for key, buffer in module._buffers.items():
            kept = key not in module._non_persistent_buffers_set
            name = f"{prefix}.{key}" if prefix else key
            if kept and buffer is not None and buffer.is_floating_point() and buffer not in seen:
                seen.add(buffer)
                yield name, buffer


def _leaf(name: str, tensor: Tensor) -> Leaf:
    if tensor.is_meta:
        msg = f"{name} is on the meta device and has no values. Load the backbone's weights before the delta."
        raise DeltaHubError(msg)
    return Leaf(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), _hash(tensor.detach()))


def _hash(tensor: Tensor) -> str:
    state = xxhash.xxh3_128()
    for piece in _pieces(tensor):
        row = piece.as_strided((piece.numel(),), (1,))  # not reshape: one element alone may have any stride
        state.update(row.view(torch.uint8).numpy().data)  # as bytes: NumPy knows no bfloat16
    return state.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The values in row-major order, as contiguous CPU tensors."""
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
