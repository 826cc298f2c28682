"""The forwards that training libraries put on the modules of a model, which a copy for export must not keep.

accelerate wraps the forward of a model in autocast and keeps the one before as `_original_forward`. TRL gives a model, or its head, a
forward of its own. A function that holds a module of the model would run the original from a copy, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any, Final

from torch import nn

from deltahub.engine.offloading import HOOK
from deltahub.errors import MergeError

_BEFORE: Final = "_original_forward"
_TRAINERS: Final = ("trl", "accelerate")


def refuse_captured(modules: Mapping[str, nn.Module]) -> None:
    """Refuse a model of which a copy would run the original: a forward on one of its modules holds a module of it.

    Args:
        modules: the modules by name.

    Raises:
        MergeError: there is one.
    """
    known = {id(module) for module in modules.values()}
    for name, module in modules.items():
        forward = _forward(module)
        if isinstance(forward, FunctionType) and any(id(value) in known for value in _held(forward)):
            msg = (
                f"The forward of {name or 'the backbone'} was replaced by {forward.__qualname__}, which holds a module of the backbone, so that "
                "a copy would run the original. Save the delta, and load it on a backbone that is loaded anew."
            )
            raise MergeError(msg)


def restore_forwards(modules: Mapping[str, nn.Module]) -> None:
    """Give the modules of a copy the forwards that they had before training libraries replaced them."""
    for module in modules.values():
        if "forward" not in module.__dict__ or HOOK in module.__dict__:
            continue
        module.__dict__["forward"] = _forward(module)
        module.__dict__.pop(_BEFORE, None)
        if _is_own(module) or _is_of_trainer(module.__dict__["forward"]):
            del module.__dict__["forward"]


def _forward(module: nn.Module) -> Any:
    """Return the forward that a module had before accelerate wrapped it; None if that is the one of its class."""
    return module.__dict__.get(_BEFORE, module.__dict__.get("forward"))


def _held(function: FunctionType) -> Iterator[Any]:
    """Yield the values that a function holds, and the objects of the methods among them."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing was assigned
            yield getattr(cell.cell_contents, "__self__", cell.cell_contents)


def _is_own(module: nn.Module) -> bool:
    forward = module.__dict__["forward"]
    return isinstance(forward, MethodType) and forward.__self__ is module and forward.__func__ is type(module).forward


def _is_of_trainer(forward: Any) -> bool:
    return isinstance(forward, MethodType) and str(forward.__func__.__module__).partition(".")[0] in _TRAINERS
