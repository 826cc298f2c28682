"""Checks that the current state of a backbone allows an operation on its deltas.

A compiled, wrapped, sharded or merged backbone takes no new delta.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import torch
from torch import nn

from deltahub.engine.ledger import ATTRIBUTE, Ledger, names_on
from deltahub.engine.marks import mark_parents
from deltahub.engine.modules import modules_by_name, own_parameters
from deltahub.engine.offloading import HOOK, refuse_offloaded_as_a_whole
from deltahub.engine.overrides import overrides
from deltahub.engine.sharding import is_one_of_several, is_partitioned
from deltahub.engine.site import CHILD, COMPILED, Site, refuse_own_deltas, site_of
from deltahub.errors import ConfigError, MergeError, RouteError
from deltahub.log import LOGGER

_PEFT_CLASSES: Final = (  # each is loaded if PEFT has changed anything
    ("peft.peft_model", "PeftModel"),
    ("peft.tuners.tuners_utils", "BaseTunerLayer"),
    ("peft.utils.other", "AuxiliaryTrainingWrapper"),
)


def check_name(modules: Mapping[str, nn.Module], name: str) -> None:
    """Check that a new delta on a backbone can have this name.

    Args:
        modules: the backbone's modules by name (`engine/modules.py`).

    Raises:
        ConfigError: the name is taken, or is not an identifier.
    """
    if name in names_on(modules):
        msg = f"A delta called {name!r} is on this backbone already; choose another name."
        raise ConfigError(msg)
    if not isinstance(name, str) or not name.isidentifier():
        msg = f"{name!r} cannot be the name of a delta: use letters, digits and '_', not starting with a digit."
        raise ConfigError(msg)


def refuse_merged(backbone: nn.Module) -> None:
    """Raise if deltas are merged into a backbone's weights.

    Raises:
        MergeError: some are.
    """
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if isinstance(ledger, Ledger) and ledger.merged:
        raise _merged(ledger.merged)


def refuse_merged_tensors(backbone: nn.Module, names: Collection[str]) -> None:
    """Raise if deltas are merged into backbone tensors that would have to train.

    Raises:
        MergeError: one is affected.
    """
    if merged := sorted(
        name for name, record in overrides(modules_by_name(backbone)) if record.merged and name in names
    ):
        msg = f"A delta is merged into {merged[0]}, so it cannot be trained. Call unmerge() first."
        raise MergeError(msg)


def refuse_busy(sites: Iterable[Site]) -> None:
    """Raise if deltas of any handle are merged or routed at these sites.

    Raises:
        MergeError: some are merged.
        RouteError: a route is open.
    """
    for site in sites:
        if site.merged:
            raise _merged(site.merged)
        if site.detour is not None:
            raise _routed()


def _merged(names: Iterable[str]) -> MergeError:
    quoted_names = ", ".join(map(repr, names))
    return MergeError(
        f"{quoted_names} is merged into the backbone's weights, but deltas need the original weights. Call unmerge() first."
    )


def _routed() -> RouteError:
    return RouteError(
        "A route is open on this backbone, and its deltas stay as they are meanwhile. Leave its `with` block first."
    )


def refuse_routed(backbone: nn.Module) -> None:
    """Raise if a route is open on a backbone, which sends rows of a batch through its deltas.

    Raises:
        RouteError: one is.
    """
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if isinstance(ledger, Ledger) and ledger.route is not None:
        raise _routed()


def note_compiled(backbone: nn.Module, targets: Iterable[nn.Module]) -> None:
    """Make sure that graphs with these modules are recompiled: the compiler's guards see the marks of a site.

    A module without parameters and children that is compiled on its own has no mark, so all compiled code is reset.

    Args:
        backbone: the model that contains the modules.
        targets: modules at which a site was added, changed or removed.
    """
    if not mark_parents(backbone, targets) and has_compiled():
        torch.compiler.reset()
        LOGGER.info(
            "A delta on a module without parameters was added or removed, so all compiled code will be recompiled."
        )


def has_compiled() -> bool:
    """Whether anything has been compiled in this process."""
    if "torch._dynamo.convert_frame" not in sys.modules:
        return False
    compiled: Any = getattr(sys.modules["torch._dynamo.convert_frame"], "input_codes", None)
    return bool(getattr(compiled, "seen", True))  # another torch may store its list elsewhere; resetting is always safe


def refuse_closed(modules: Mapping[str, nn.Module]) -> None:
    """Refuse a backbone that cannot take another delta in its current state.

    Args:
        modules: the backbone's modules by name (`engine/modules.py`).

    Raises:
        ConfigError: it is a wrapper, whose prefix would become part of every saved name; PEFT has changed it; its parameters are
            sharded or split (FSDP, tensor parallelism, ZeRO-3); or a module is offloaded together with its children.
        MergeError: other deltas are merged into its weights.
        RouteError: a route is open on it.
        TargetError: a part of the backbone itself is called `deltas`.
    """
    backbone = modules[""]
    wrappers = (torch._dynamo.OptimizedModule,) if "torch._dynamo" in sys.modules else ()
    if isinstance(backbone, (*wrappers, nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = "module" if "module" in backbone._modules else COMPILED
        msg = (
            f"backbone_model is a {type(backbone).__name__} around the backbone: pass backbone_model=model.{inner}. "
            "Add deltas before wrapping: DataParallel and DistributedDataParallel see only what was there when they began."
        )
        raise ConfigError(msg)
    refuse_adapted(modules)
    refuse_merged(backbone)
    refuse_routed(backbone)
    several = is_one_of_several()
    for name, module in modules.items():
        if CHILD in module._modules or CHILD in module._parameters or CHILD in module._buffers:
            refuse_own_deltas(name, module)
            refuse_busy((site_of(module),))
        if HOOK in module.__dict__:
            refuse_offloaded_as_a_whole(name, module)
        if several:
            _refuse_sharded(name, module)


def refuse_adapted(modules: Mapping[str, nn.Module]) -> None:
    """Refuse a backbone with an adapter that PEFT put in, which PEFT can switch off or exchange without a trace in the weights.

    Args:
        modules: the backbone's modules by name.

    Raises:
        ConfigError: it has one.
    """
    kinds = tuple(
        kind for place, name in _PEFT_CLASSES if isinstance(kind := getattr(sys.modules.get(place), name, None), type)
    )
    if name := next((name or "The backbone" for name, module in modules.items() if isinstance(module, kinds)), None):
        msg = (
            f"{name} is a {type(modules.get(name, modules[''])).__name__} of PEFT: PEFT renames the layers with its adapters, and can switch "
            "these off, so a delta would not know its backbone. Keep the adapter as a delta: load its folder with "
            "AutoDeltaModel.from_finetuned, on the model without PEFT. Or take it out (unload()) or merge it (merge_and_unload()) first."
        )
        raise ConfigError(msg)


def refuse_sharded_codes(modules: Mapping[str, nn.Module]) -> None:
    """Refuse quantised weights that FSDP2 shards: their scales stay elsewhere, so that a record of the backbone would lack them.

    Args:
        modules: the backbone's modules by name.

    Raises:
        ConfigError: one is sharded.
    """
    if not is_one_of_several():
        return
    for name, parameter in own_parameters(modules):
        if hasattr(parameter, "placements") and not (parameter.is_floating_point() or parameter.is_complex()):
            msg = (
                f"{name} is quantised ({parameter.dtype} codes) and sharded, which separates it from its scales, so the backbone cannot be "
                "recorded. Leave such weights whole on every process: fully_shard(module, ignored_params={p for p in module.parameters() if "
                "not p.is_floating_point()}). To keep the trained tensors, call save_checkpoint."
            )
            raise ConfigError(msg)


def _refuse_sharded(name: str, module: nn.Module) -> None:
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if isinstance(module, (FSDPModule, FullyShardedDataParallel)):
        msg = (
            f"{name or 'The backbone'} is sharded ({type(module).__name__}), and a delta added now would be left out. "
            "Add deltas before fully_shard or FullyShardedDataParallel."
        )
        raise ConfigError(msg)
    parameters: Mapping[str, Any] = module._parameters  # of any kind of tensor
    for key, parameter in parameters.items():
        place = f"{name}.{key}" if name else key
        if isinstance(parameter, DTensor):
            msg = (
                f"{place} is split over processes (tensor parallelism): a layer takes or gives a part of the hidden state there, which a "
                "delta would take for the whole. To train, load the model without tp_plan and shard it after the delta is added "
                "(fully_shard, ZeRO); to serve, merge the delta (export with format='merged') and load that with tp_plan."
            )
            raise ConfigError(msg)
        if is_partitioned(parameter):
            msg = f"{place} is partitioned by DeepSpeed ZeRO-3, which would leave out a delta added now. Add deltas before deepspeed.initialize, outside zero.Init."
            raise ConfigError(msg)
