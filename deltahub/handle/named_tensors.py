"""The tensors of a delta by the names that other programs use, for weight synchronisation with an inference server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import Checkpoint
from deltahub.engine.ledger import Entry
from deltahub.engine.modules import modules_by_name, own_parameters
from deltahub.engine.sharding import full_tensor
from deltahub.errors import ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.peft.method_export import exported
from deltahub.handle.merging import merged_tensors
from deltahub.handle.probe import refuse_others


def named_tensors(
    backbone: nn.Module, entry: Entry, state_dict: Callable[[], Mapping[str, Tensor]], form: str
) -> Mapping[str, Tensor]:
    """Return the tensors of a delta by their names in a format: see `DeltaBase.named_tensors`.

    Args:
        state_dict: returns all tensors of the delta, by their names in a checkpoint.
        form: ``"deltahub"``, ``"peft"`` or ``"merged"``.

    Raises:
        ConfigError: the format is unknown or cannot hold the delta or its strength, or for ``"merged"`` another delta acts.
        MergeError: ``"merged"``, and the delta cannot be merged, or is merged already.
    """
    if form == "merged":
        refuse_others(backbone, entry)
        return merged_tensors(backbone, entry)
    tensors = {name: full_tensor(tensor) for name, tensor in state_dict().items()}
    if form == "deltahub":
        return tensors
    if form != "peft":
        msg = f"{form!r} is not a format of named tensors; expected 'deltahub', 'peft' or 'merged'."
        raise ConfigError(msg)
    if entry.config.strength != 1:
        msg = f"The names of PEFT carry no strength, and {entry.name!r} has {entry.config.strength:g}. Set it to 1 with scale(1.0), or use export."
        raise ConfigError(msg)
    saved = Checkpoint(Path(), entry.config.to_dict(), None, tensors, {})
    shapes = {name: tuple(parameter.shape) for name, parameter in own_parameters(modules_by_name(backbone))}
    return exported(saved, replace(Backbone.of(saved, backbone), shapes=shapes)).tensors
