"""EVA: the A of a LoRA starts as the directions in which the inputs of its layer vary most.

    X: (tokens, n_in), the inputs of the layer in some batches less their mean;    A = the first r right singular vectors of X, B = 0

They are the eigenvectors of ``X^T X`` with the largest eigenvalues, over all batches. Each layer keeps its rank (rho = 1 in PEFT).

Paischer et al. 2024, "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation", https://arxiv.org/abs/2410.07170
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.deltas.lora_layers import LowRankUpdate
from deltahub.engine.insertion import Insertion, first_input
from deltahub.engine.modules import module_at
from deltahub.engine.weights import members_of
from deltahub.errors import ConfigError


@torch.no_grad()
def initialise_eva(backbone: nn.Module, insertions: Mapping[str, Insertion], batches: Iterable[Any]) -> None:
    """Set the A of every update of an untrained LoRA: see `LoraModel.initialize_eva`.

    Raises:
        ConfigError: an update is not that of a linear layer, or is trained already; a layer was not called, or with too few tokens.
    """
    members = {address: members_of(insertion) for address, insertion in insertions.items()}
    for address, updates in members.items():
        for update in updates:
            if type(update) is not LowRankUpdate:
                msg = f"EVA initialises plain LoRAs of linear layers, and {address} has a {type(update).__name__}. Leave it out."
                raise ConfigError(msg)
            if update.lora_B.any():
                msg = f"The LoRA at {address} is trained already, or has another initialisation. Call initialize_eva before training."
                raise ConfigError(msg)
    found = _scatters(backbone, insertions, batches)
    starts: list[tuple[LowRankUpdate, Tensor]] = []
    for address, updates in members.items():
        scatter, count = found.get(address, (None, 0))
        for update in updates:
            assert isinstance(update, LowRankUpdate)
            rank = len(update.lora_A)
            if scatter is None or count < rank or rank > len(scatter):
                msg = (
                    f"{address} received {count} tokens in these batches, and EVA needs at least as many as the rank, {rank}, which must not "
                    "exceed the layer's inputs. Pass more batches, or leave the layer out."
                )
                raise ConfigError(msg)
            starts.append((update, torch.linalg.eigh(scatter)[1][:, -rank:].flip(1).T))
    for update, start in starts:
        update.lora_A.copy_(start)


def _scatters(
    backbone: nn.Module, insertions: Mapping[str, Insertion], batches: Iterable[Any]
) -> dict[str, tuple[Tensor, int]]:
    """Return ``X^T X``, ``(n_in, n_in)``, and the number of tokens for each layer that is called."""
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}  # of the squares, of the inputs, and their number
    mask: Tensor | None = None

    def watch(address: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = first_input(args, kwargs).detach()
            x = x[mask.to(x.device)] if mask is not None and mask.shape == x.shape[:-1] else x.flatten(0, -2)
            x = x.double()  # the mean is taken away at the end
            squares, total, count = sums.get(address, (0, 0, 0))
            sums[address] = (squares + x.T @ x, total + x.sum(0), count + len(x))

        return hook

    was_training = [module for module in backbone.modules() if module.training]
    with ExitStack() as stack:
        for address in insertions:
            handle = module_at(backbone, address).register_forward_pre_hook(watch(address), with_kwargs=True)
            stack.callback(handle.remove)
        stack.callback(_train_again, was_training)
        backbone.eval()
        for batch in batches:
            padding = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            mask = padding.bool() if isinstance(padding, Tensor) else None
            if isinstance(batch, Mapping):
                backbone(**batch)
            else:
                backbone(*batch) if isinstance(batch, (tuple, list)) else backbone(batch)
    return {
        address: (squares - torch.outer(total, total) / max(count, 1), count)
        for address, (squares, total, count) in sums.items()
    }


def _train_again(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.training = True
