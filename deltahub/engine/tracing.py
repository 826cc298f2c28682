"""Python calls at trace time of torch.compile, which leave nothing in the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def while_tracing(act: Callable[[nn.Module | None], None], module: nn.Module) -> None:
    """Call a function on a module while it is being traced.

    Unlike an assignment in the traced code, this is allowed inside checkpointing, and costs nothing when the graph runs.

    Args:
        act: a top-level function; it gets None if this torch does not expose the traced module.
    """
    from torch._dynamo.comptime import comptime  # late: importing the compiler takes seconds

    comptime(_act)


def _act(context: Any) -> None:
    act, module = (
        context.get_local(name)._i_will_not_complain_if_bc_breaks_VariableTracker() for name in ("act", "module")
    )
    value = getattr(module.realize(), "value", None)
    act.realize().get_function()(value if isinstance(value, nn.Module) else None)
