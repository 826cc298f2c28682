"""Strict loading of saved tensors into a delta: every tensor is used, and every parameter is filled."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deltahub.engine.fingerprint import backbone_tensors
from deltahub.engine.insertion import Insertion
from deltahub.engine.layers import training_fault
from deltahub.engine.modules import module_at, own_modules, running_statistics
from deltahub.engine.offloading import device_of
from deltahub.engine.site import delta_key, is_delta_name
from deltahub.errors import CheckpointError

_SMALL: Final = 256 << 20  # bytes of a file that any backbone's delta may have


def replaced_names(tensors: Collection[str]) -> tuple[str, ...]:
    """Return the names of the backbone's own tensors in a checkpoint."""
    return tuple(name for name in tensors if not is_delta_name(name))


def refuse_larger(path: Path, backbone: nn.Module) -> None:
    """Refuse a file of tensors more than twice as large as the backbone at 4 or more bytes per value, before reading it.

    Args:
        path: the file; a missing file is reported by its reader.

    Raises:
        CheckpointError: the file is too large.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size <= _SMALL or (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return  # a process may not know all values of a sharded backbone
    tensors = (
        t for _, module in own_modules(backbone) for t in (*module._parameters.values(), *module._buffers.values())
    )
    # All of the backbone may have been trained, and the delta beside it be as large.
    limit = _SMALL + 2 * sum(t.numel() * max(4, t.element_size()) for t in tensors if t is not None and not is_lazy(t))
    if size > limit:
        msg = (
            f"{path} has {size:,} bytes, more than a delta for this {type(backbone).__name__} can have ({limit:,}). Load its own "
            "backbone, or fetch it again."
        )
        raise CheckpointError(msg)


def fill(insertions: Mapping[str, Insertion], backbone: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill insertions that are not yet in a backbone; all checks come before the first change.

    Args:
        insertions: by module name, on any device; they end up with the dtypes of `tensors` on the backbone's devices.
        tensors: a checkpoint's tensors.

    Returns:
        The tensors that replace the backbone's own, by name.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape, or not finite.
    """
    places = {
        delta_key(address, key): (address, key, tensor)
        for address, insertion in insertions.items()
        for key, tensor in insertion.state_dict().items()
    }
    expected = {name: tensor for name, (_, _, tensor) in places.items()}
    if names := replaced_names(tensors):
        statistics = running_statistics(backbone)
        originals = {**statistics, **dict(backbone_tensors(backbone))}
        expected.update({name: originals[name] for name in names if name in originals})
        refuse_without_values(expected, names)
        _refuse_untrainable(
            backbone, {name: originals[name] for name in names if name in originals and name not in statistics}
        )
    check_fit(expected, tensors)
    shares: dict[str, dict[str, Tensor]] = {address: {} for address in insertions}
    for name, (address, key, _) in places.items():
        shares[address][key] = tensors[name]
    for address, insertion in insertions.items():
        device = device_of(module_at(backbone, address), backbone)
        share = {key: tensor.to(device) for key, tensor in shares[address].items()}
        insertion.load_state_dict(share, strict=True, assign=True)
    return {name: tensors[name] for name in names}


def refuse_without_values(tensors: Mapping[str, Tensor], names: Collection[str]) -> None:
    """Raise if any of these backbone tensors is on the meta device, where a loaded value would be lost.

    Raises:
        CheckpointError: one is.
    """
    for name in names:
        if name in tensors and tensors[name].is_meta:
            msg = (
                f"{name} is on the meta device (offloaded, or without values), so it can hold no value of a delta's. Keep the "
                "modules that a delta trains as a whole on a device: see device_map of from_pretrained."
            )
            raise CheckpointError(msg)


def _refuse_untrainable(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if fault := training_fault(module_at(backbone, name.rpartition(".")[0]), tensor):
            msg = f"{name} cannot take the value that was trained: {fault}. Load the delta on a backbone with plain weights."
            raise CheckpointError(msg)


def check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Check a checkpoint's tensors against those of a delta.

    Raises:
        CheckpointError: they do not fit; the message lists the first few mismatches.
    """
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is not part of this delta" for name in tensors if name not in expected]
    for name in (
        name for name in expected if name in tensors
    ):  # in their order, so that a message is the same each time
        want, have = list(expected[name].shape), list(tensors[name].shape)
        if want != have:
            wrong.append(f"{name} is {have}, expected {want}")
        elif expected[name].is_floating_point() != tensors[name].is_floating_point():
            wrong.append(f"{name} is {tensors[name].dtype}, expected {expected[name].dtype}")
    if not wrong:
        wrong = not_finite(tensors)
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        msg = f"The tensors do not fit the delta: {'; '.join(wrong[:3])}{more}. Load it with the config it was saved with."
        raise CheckpointError(msg)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return a clause for each tensor that holds a NaN or an infinity."""
    return [
        f"{name} holds values that are not finite"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not _is_finite(tensor)
    ]


def _is_finite(tensor: Tensor) -> bool:
    # One sum settles almost every tensor; only float64 values can be finite and overflow it.
    return math.isfinite(tensor.sum(dtype=torch.float64).item()) or bool(torch.isfinite(tensor).all())
