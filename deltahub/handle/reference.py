"""The reference of a policy: its backbone without the delta in training, as a model of its own that shares the tensors.

Preference training (DPO, GRPO) compares a policy with its reference. The reference has modules of its own, so nothing is switched, and both
can run at the same time, in any thread.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import nn

from deltahub.engine.guards import refuse_merged, refuse_routed
from deltahub.engine.ledger import Entry, ledger_holding, ledger_of
from deltahub.engine.modules import module_at, modules_by_name
from deltahub.engine.overrides import overrides, tensor_at
from deltahub.engine.sharding import is_sharded
from deltahub.engine.substitution import replacement_fault
from deltahub.engine.trainable import forget_trainable
from deltahub.errors import ConfigError
from deltahub.handle.freezing import prefix_of
from deltahub.handle.switching import detach, forget


def reference(backbone: nn.Module, entry: Entry, model: nn.Module | None) -> Any:
    """Return a model without a delta that shares the tensors of the delta's backbone: see `DeltaBase.reference`.

    Raises:
        AddressError: the backbone is not part of `model`.
        ConfigError: the reference would train, it is sharded, or the forward of a module has been replaced.
        MergeError: deltas are merged; a call of the reference raises it too.
        RouteError: a route is open.
        TargetError: the delta was removed.
    """
    ledger_holding(backbone, entry)  # raises if the delta was removed
    whole = backbone if model is None else model
    address = prefix_of(whole, backbone).removesuffix(".")
    modules = modules_by_name(whole)
    refuse_merged(backbone)
    refuse_routed(backbone)
    _refuse_changed(whole, modules)
    twin = _shared_copy(whole, modules)
    part = module_at(twin, address)
    twin_entry = ledger_of(part).entries[entry.name]
    detach(part, twin_entry, None, reset_state_dict=True)
    forget_trainable(twin)  # the flags of shared parameters are the policy's
    forget(part, twin_entry)
    for name, _ in overrides(modules):
        tensor_at(twin, name).requires_grad_(False)  # a copy with the value that the reference has
    _refuse_trained(twin)
    twin.register_forward_pre_hook(_refuse_trained)
    twin.register_forward_pre_hook(_Unmerged(backbone))
    return twin.eval()


def _refuse_changed(whole: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Raise if a copy of the modules would not compute what they compute, or would keep their tensors twice."""
    if is_sharded(whole):
        msg = "The backbone is sharded, so that a reference cannot share its tensors. Make the reference before sharding it."
        raise ConfigError(msg)
    if name := next((name or "the backbone" for name, module in modules.items() if _is_replaced(module)), None):
        msg = (
            f"The forward of {name} has been replaced (by a trainer, torch.compile, or accelerate), and a copy may go on to call the "
            "original's. Make the reference before any trainer; after one, save the delta and load it on a backbone that is loaded anew."
        )
        raise ConfigError(msg)


def _is_replaced(module: nn.Module) -> bool:
    """Return whether a copy of a module may call the original's forward; trainers leave the module's own one as an attribute."""
    return "forward" in module.__dict__ and ("_hf_hook" in module.__dict__ or replacement_fault(module) != "")


def _shared_copy(whole: nn.Module, modules: Mapping[str, nn.Module]) -> Any:
    """Copy the modules, but not the tensors, except those that deltas have own values of."""
    own_values = {id(tensor_at(whole, name)) for name, _ in overrides(modules)}
    tensors = chain(whole.parameters(), whole.buffers())
    return copy.deepcopy(whole, {id(tensor): tensor for tensor in tensors if id(tensor) not in own_values})


class _Unmerged:
    """A hook of the reference that refuses a call while deltas are merged into the tensors that it shares.

    A copy of the reference that a process sends to another one has tensors of its own, and no backbone to ask.
    """

    def __init__(self, backbone: nn.Module | None) -> None:
        self.backbone = None if backbone is None else weakref.ref(backbone)

    def __call__(self, model: nn.Module, args: Any) -> None:
        backbone = None if self.backbone is None else self.backbone()
        if backbone is not None:
            refuse_merged(backbone)

    def __deepcopy__(self, memo: Any) -> _Unmerged:
        return _Unmerged(None)

    def __reduce__(self) -> Any:
        return _Unmerged, (None,)


def _refuse_trained(model: nn.Module, args: Any = ()) -> None:
    """Raise if a tensor of the reference trains: it would move with the policy."""
    if name := next((name for name, parameter in model.named_parameters() if parameter.requires_grad), None):
        msg = f"{name} is trained, and the reference shares it. Choose what trains with freeze_module, and make the reference after that."
        raise ConfigError(msg)
