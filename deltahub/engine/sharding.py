"""Backbones sharded by FSDP2 or partitioned by DeepSpeed ZeRO-3: each process holds a part of every tensor.

Functions that gather or scatter a tensor are collective: every process calls them, in the same order. On a backbone that is
not sharded, they involve no other process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.engine.modules import own_modules
from deltahub.errors import ConfigError


def reshard(backbone: nn.Module) -> None:
    """Reshard the parameters of a sharded backbone, which may be temporary copies after a forward pass.

    Raises:
        ConfigError: FullyShardedDataParallel has flattened them, so that no tensor has its own shape.
    """
    if not is_one_of_several():
        return
    for module in _sharded_modules(backbone):
        module.reshard()
    flattened = [p for p in backbone.parameters() if getattr(p, "_fsdp_flattened", False)]
    if flattened and all(parameter.dim() == 1 for parameter in flattened):
        msg = (
            "FullyShardedDataParallel has flattened the backbone's parameters, the delta's among them. Go on inside "
            "`with FullyShardedDataParallel.summon_full_params(model):`, or use fully_shard (FSDP2), which needs no such step."
        )
        raise ConfigError(msg)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor with all its values on this process."""
    if is_partitioned(tensor):
        return live_value(tensor)
    full: Any = getattr(tensor, "full_tensor", None)
    if full is None:
        return tensor
    gathered: Tensor = full()
    return gathered


def live_value(tensor: Tensor) -> Tensor:
    """Return the values of a live tensor without its gradient: a copy if ZeRO-3 has partitioned it, else a view."""
    if not is_partitioned(tensor):
        return tensor.detach()
    with _gathered(tensor):
        return tensor.detach().clone()


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor, which is empty on this process if ZeRO-3 has partitioned it."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def is_partitioned(tensor: Tensor) -> bool:
    """Return whether ZeRO-3 has partitioned a parameter."""
    return hasattr(tensor, "ds_id")


def _gathered(tensor: Tensor, *, write: bool = False) -> Any:
    """Return a context in which a partitioned parameter has all its values, to be partitioned again as the first process has them."""
    from deepspeed.runtime.zero import GatheredParameters  # loaded: it has partitioned the parameter

    return GatheredParameters([tensor], modifier_rank=0 if write else None)


@torch.no_grad()
def assign(live: Tensor, value: Tensor) -> None:
    """Copy values into a tensor, which may be sharded even if the values are not."""
    if is_partitioned(live):
        with _gathered(live, write=True):
            live.data.copy_(value)
        return
    if hasattr(live, "full_tensor") and not hasattr(value, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(live, DTensor)
        value = distribute_tensor(value.to(live.device), live.device_mesh, live.placements)
    live.copy_(value)


def done_once(backbone: nn.Module, action: Callable[[], None]) -> None:
    """Run an action once: here, or on the first process of a sharded backbone while the others wait.

    Raises:
        Exception: the exception of `action`, on every process.
    """
    if not is_sharded(backbone):
        action()
        return
    outcome: list[Exception | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            action()
        except Exception as error:  # noqa: BLE001  # any error is passed on: the others wait for the outcome
            outcome = [error]
    torch.distributed.broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise outcome[0]


def is_sharded(backbone: nn.Module) -> bool:
    """Return whether each process holds a part of the backbone only."""
    return bool(_sharded_modules(backbone)) or (is_one_of_several() and any(map(is_partitioned, backbone.parameters())))


def _sharded_modules(backbone: nn.Module) -> list[Any]:
    if not is_one_of_several():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for _, module in own_modules(backbone) if isinstance(module, FSDPModule)]


def is_one_of_several() -> bool:
    """Whether this process shares its work with others, so that a backbone can be sharded."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
