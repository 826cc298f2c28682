"""Conversion of a delta to a LoRA: the change of each weight by its best approximation of low rank.

    dW = merged weight - weight,    dW ~ U S V^T    A = sqrt(S) V^T, B = U sqrt(S), s = 1

A change of a bias becomes the bias of B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.algebra.factors import Factors, approximated
from deltahub.algebra.methods import check_size
from deltahub.algebra.places import Place
from deltahub.algebra.result import Change, lora_options, lora_tensors
from deltahub.engine.building import build, complete_config
from deltahub.engine.filling import fill
from deltahub.engine.guards import refuse_merged, refuse_routed
from deltahub.engine.insertion import acts_in
from deltahub.engine.ledger import Entry, ledger_of
from deltahub.engine.modules import module_at
from deltahub.engine.overrides import override_of, tensor_at
from deltahub.engine.site import delta_key
from deltahub.engine.weights import is_turned, linear_bias, linear_weight
from deltahub.errors import ConfigError, MergeError


@dataclass(frozen=True)
class LoraConversion:
    """A LoRA made of another delta.

    Attributes:
        delta: the LoRA, attached to the backbone.
        changes: the rank and the relative error of each module.
    """

    delta: Any
    changes: tuple[Change, ...]

    @property
    def max_error(self) -> float:
        """The largest relative error of a module."""
        return max((change.error for change in self.changes), default=0.0)


@torch.no_grad()
def converted(
    lora: Any, backbone: nn.Module, entry: Entry, *, rank: int | None, energy: float | None, name: str | None
) -> LoraConversion:
    """Convert a delta to a LoRA: see `DeltaBase.as_lora`.

    Args:
        lora: the delta model class of LoRA.
    """
    check_size(rank, energy)
    if rank is None and energy is None:
        msg = "as_lora needs a rank, or the energy to keep: a share of the squared norm of each update, such as 0.99."
        raise ConfigError(msg)
    refuse_merged(backbone)
    refuse_routed(backbone)
    updates, biases, changes = {}, {}, []
    for address, insertion in entry.insertions.items():
        change, shift = _change(address, module_at(backbone, address), insertion)
        best = approximated(change, rank, energy)
        updates[Place.at(address)] = best.factors
        biases[address] = shift
        changes.append(Change(address, best.factors.rank, best.error))
    delta = _put_on(lora, backbone, updates, biases, name)
    ledger = ledger_of(backbone)
    ledger.replace(backbone, ledger.entries[delta.name], dict(_trained(backbone, entry)))
    return LoraConversion(delta, tuple(changes))


def _change(address: str, target: nn.Module, insertion: Any) -> tuple[Tensor, Tensor | None]:
    """Return the changes of a weight, ``(n_out, n_in)``, and of a bias, ``(n_out,)`` or None."""
    if acts_in(insertion, "substitute"):
        msg = f"{address} cannot become a LoRA: the delta is one already there, on parameters that the module reads itself. Keep it as it is."
        raise ConfigError(msg)
    try:
        values: Mapping[str, Tensor] = insertion.merged(target)
    except MergeError as error:
        msg = f"{address} cannot become a LoRA: {error}."
        raise ConfigError(msg) from error
    new = values.get("weight")
    if new is None or new.dim() < 2:
        msg = f"{address} cannot become a LoRA: the delta changes no matrix there. Keep it as it is."
        raise ConfigError(msg)
    new = new.T if is_turned(target) else new.flatten(1)
    change = new - linear_weight(target).to(new.dtype)
    bias = linear_bias(target)
    shift = values["bias"] - bias.to(values["bias"].dtype) if "bias" in values and bias is not None else None
    return change.detach().cpu(), shift if shift is None else shift.detach().cpu()


def _put_on(
    lora: Any,
    backbone: nn.Module,
    updates: Mapping[Place, Factors],
    biases: Mapping[str, Tensor | None],
    name: str | None,
) -> Any:
    tensors = {key: tensor.contiguous() for key, tensor in lora_tensors(updates).items()}
    use_bias = any(shift is not None and bool(shift.any()) for shift in biases.values())
    for address, shift in biases.items() if use_bias else ():
        if not isinstance(module_at(backbone, address), nn.Embedding):
            up = tensors[delta_key(address, "lora_B")]
            tensors[delta_key(address, "lora_bias")] = up.new_zeros(len(up)) if shift is None else shift.to(up)
    options = {
        **lora_options(updates),
        "modified_modules": list(biases),
        "exclude_modules": [],
        "common_structure": False,
        "use_bias": use_bias,
    }
    config = complete_config(lora, lora.config_class.from_dict(options), backbone)
    insertions = build(lora, backbone, config, empty=True)
    fill(insertions, backbone, tensors)
    return lora.from_config(config, backbone, name=name, insertions=insertions)


def _trained(backbone: nn.Module, entry: Entry) -> dict[str, Tensor]:
    """Return a delta's values of backbone tensors, such as those of a head."""
    values = {}
    for name in entry.replaced:
        record = override_of(backbone, name)
        assert record is not None  # the entry claims it
        values[name] = record.value(entry.serial, tensor_at(backbone, name)).clone()
    return values
