"""Checks that a merge is possible, made before anything changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from deltahub.engine.insertion import acts_in
from deltahub.engine.modules import own_modules
from deltahub.engine.overrides import Override
from deltahub.engine.sharding import is_partitioned
from deltahub.engine.site import Site
from deltahub.errors import MergeError


def check_alone(address: str, site: Site, name: str) -> None:
    """Raise if another delta has to come before this one: merged work runs first, inside the layer."""
    insertion, active = site.slots[name], list(site._modules)
    others = [other for other in active if other != name]
    earlier = active[: active.index(name)]
    blockers = others if acts_in(insertion, "before") else [o for o in earlier if acts_in(site.slots[o], "after")]
    # An insertion that reads the weights would also read the merged work of another delta.
    neighbours = [*others, *site.merged]
    blockers += [other for other in neighbours if insertion.reads_weight or site.slots[other].reads_weight]
    if blockers:
        remedy = "Detach one of them." if insertion.reads_weight else f"Merge or detach {blockers[0]!r} first."
        msg = (
            f"{name!r} cannot be merged: {blockers[0]!r} acts on {address} too, and a merge would change what they do."
        )
        raise MergeError(f"{msg} {remedy}")


def refuse_meta(address: str, target: nn.Module) -> None:
    """Raise if a module's parameters have no values here."""
    for key, parameter in target._parameters.items():
        if parameter is not None and parameter.is_meta:
            name = f"{address}.{key}" if address else key
            msg = f"{name} is on the meta device (offloaded, or without values). Merge into a backbone that is loaded as a whole."
            raise MergeError(msg)


def refuse_partitioned(backbone: nn.Module) -> None:
    """Raise if ZeRO-3 has partitioned the backbone.

    Raises:
        MergeError: it has; the message names the first parameter.
    """
    if name := next((name for name, parameter in backbone.named_parameters() if is_partitioned(parameter)), None):
        msg = (
            f"{name} is partitioned by DeepSpeed ZeRO-3: each process holds a part of it, so nothing can be merged into it. Save the delta "
            "(save_finetuned gathers it), and merge it into a backbone that is loaded as a whole."
        )
        raise MergeError(msg)


def check_tensor(
    name: str, live: Tensor, new: Tensor, owners: Mapping[int, list[str]], as_one: Collection[str]
) -> None:
    """Refuse a value that is not finite, or that other modules than those that are merged `as_one` would get."""
    others = (n for n in owners.get(id(live), []) if n != name and n.rpartition(".")[0] not in as_one)
    if (other := next(others, None)) is not None:
        msg = f"{name} is also {other} (tied weights), so a merge would change both. Use the delta unmerged, or untie them."
        raise MergeError(msg)
    if not torch.isfinite(new).all():
        msg = f"{name} would not be finite as {new.dtype} after the merge. Merge into a backbone of a wider precision."
        raise MergeError(msg)


def check_unclaimed(name: str, record: Override | None, changed: Collection[str]) -> None:
    """Raise if another delta, or another handle, has a value of its own for a tensor."""
    if record is not None and record.values:
        msg = f"{name} is trained as a whole by a delta as well, which a merge would mix up. Use the delta unmerged."
        raise MergeError(msg)
    if record is not None and record.merged and name not in changed:
        msg = (
            f"A delta on a part of this model, or on a model around it, is merged into {name}, and neither could come out "
            "alone. Call unmerge() of that first."
        )
        raise MergeError(msg)


def owners_of(backbone: nn.Module) -> dict[int, list[str]]:
    """Return all names of each of the backbone's own parameters, by the parameter's id."""
    names_by_id: dict[int, list[str]] = {}
    for name, module in own_modules(backbone):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                names_by_id.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
    return names_by_id
