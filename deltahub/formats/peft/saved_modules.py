"""The backbone's tensors that an adapter of PEFT replaces: `modules_to_save`, trained biases, saved embeddings.

PEFT replaces each module in `modules_to_save` by a copy. If such a module shares its weight with another, as an embedding does
with lm_head, only that module gets the new value, unless all modules with the weight are saved with equal values
(`ensure_weight_tying`). Any other tensor in the file is written into the backbone itself, for all modules that share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.fingerprint import backbone_values
from deltahub.engine.modules import modules_by_name, own_parameters, running_statistics
from deltahub.errors import CheckpointError
from deltahub.formats.peft.targets import names_to_save, to_save, unmatched
from deltahub.formats.peft.tensor_names import Names

_EMBEDDINGS: Final = ("embed_tokens", "lm_head")  # the names that `ensure_weight_tying` applies to in PEFT


def own_values(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the backbone's own values by name, without the changes by deltas on it."""
    return {**running_statistics(backbone), **dict(backbone_values(backbone))}


def trained(
    own_tensors: Mapping[str, Tensor], config: Mapping[str, Any], names: Names
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors that an adapter replaces, without those equal to the backbone's.

    Args:
        own_tensors: the backbone's tensors in the file, by plain name.

    Returns:
        The tensors for all modules that share them, by their name in the backbone; the weights of a single module, by the module's
        plain name.

    Raises:
        CheckpointError: a tensor differs in shape from the backbone's, is missing, or has two values.
    """
    saved = _saved(config, names)
    _check_whole(own_tensors, saved, config, names)
    live_values = own_values(names.backbone) if own_tensors else {}
    everywhere: dict[str, Tensor] = {}
    alone: dict[str, Tensor] = {}
    for name, tensor in own_tensors.items():
        first = names.tensors[name]
        live = live_values[first].detach().cpu()
        if live.shape != tensor.shape:
            msg = (
                f"{name} {list(tensor.shape)} is not part of the method, and is {list(live.shape)} there in this "
                f"{type(names.backbone).__name__}. Load its own backbone."
            )
            raise CheckpointError(msg)
        changed = not torch.equal(live.to(tensor.dtype), tensor)
        shared_names = names.shared_names(first)
        if not changed and len(shared_names) == 1:
            continue
        if _only_here(name, own_tensors, shared_names, saved):
            if changed:
                alone[name.rpartition(".")[0]] = tensor
        elif not torch.equal(everywhere.setdefault(first, tensor), tensor):
            msg = f"{name} is one with {', '.join(sorted(shared_names - {name}))} in this backbone, and the adapter holds two values. Load it with PEFT."
            raise CheckpointError(msg)
    return {
        name: t for name, t in everywhere.items() if not torch.equal(live_values[name].detach().cpu().to(t.dtype), t)
    }, alone


def trainable(
    own_tensors: Mapping[str, Tensor], replaced: Mapping[str, Tensor], config: Mapping[str, Any], names: Names
) -> list[str]:
    """Return the parts of the backbone that PEFT trains: modules saved as a whole, changed or not, and biases.

    Args:
        replaced: the tensors replaced for all modules that share them, by their name in the backbone.
    """
    saved = _saved(config, names)
    biased = config.get("bias") not in (None, "none")
    parts = set()
    for name in own_tensors:
        first = names.tensors[name]
        module = next((module for module in sorted(saved) if name.startswith(f"{module}.")), None)
        if module is not None and (first in replaced or len(names.shared_names(first)) == 1):
            parts.add(names.real[module])
        elif module is None and biased and name.endswith(".bias"):
            parts.add(first)
    return sorted(parts)


def _only_here(name: str, own_tensors: Mapping[str, Tensor], shared_names: set[str], saved: set[str]) -> bool:
    """Return whether PEFT gives a value to only one of the modules that share it in the backbone."""
    within = {
        shared_name for shared_name in shared_names if any(shared_name.startswith(f"{module}.") for module in saved)
    }
    if name not in within or len(shared_names) == 1:
        return False
    return within != shared_names or any(
        shared_name not in own_tensors or not torch.equal(own_tensors[shared_name], own_tensors[name])
        for shared_name in shared_names
    )


def _saved(config: Mapping[str, Any], names: Names) -> set[str]:
    """Return the modules that PEFT replaces as a whole, with those that it ties to a replaced embedding."""
    saved = to_save(config, names.modules)
    tied = config.get("ensure_weight_tying") and any(end.split(".")[-1] in _EMBEDDINGS for end in names_to_save(config))
    return saved | names.tied_with_embeddings() if tied else saved


def _check_whole(own_tensors: Mapping[str, Tensor], saved: set[str], config: Mapping[str, Any], names: Names) -> None:
    """Refuse a file without all the tensors that its config says it trains.

    Raises:
        CheckpointError: a tensor is missing; the message names the first.
    """
    absent = unmatched(config, names.modules)
    if absent and not names.body.outer:  # else the head is left out
        msg = f"The adapter's config saves {absent[0]}, which this {type(names.backbone).__name__} does not have. Load its own backbone."
        raise CheckpointError(msg)
    expected = {name for name in names.tensors if any(name.startswith(f"{module}.") for module in saved)}
    if config.get("bias") == "all":
        present_names = {names.tensors[name] for name in own_tensors}  # by any of its shared names
        parameters = {name for name, _ in own_parameters(modules_by_name(names.backbone))}
        expected |= {
            name
            for name, first in names.tensors.items()
            if name.endswith(".bias") and first in parameters - present_names
        }
    if missing := sorted(expected - own_tensors.keys()):
        msg = f"The adapter's file lacks {missing[0]}, which its config says it trains{_more(missing)}. Fetch it again."
        raise CheckpointError(msg)


def _more(missing: list[str]) -> str:
    return f", and {len(missing) - 1} more" if len(missing) > 1 else ""
