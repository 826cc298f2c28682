"""The test whether the first dimension of a module's output counts the rows of the batch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from deltahub.engine.dummy_inputs import possible_inputs
from deltahub.engine.insertion import map_hidden
from deltahub.engine.shapes import meta_copy

_BATCH, _LENGTH = 3, 5


def rows_first(backbone: nn.Module, addresses: Collection[str]) -> set[str]:
    """Return the modules that return one hidden state per row, as seen in a pseudo forward pass of a few rows.

    The pass runs on the meta device. A module that it does not reach is not included.
    """
    clone = meta_copy(backbone).eval()
    seen: dict[str, bool] = {}

    def watch(address: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            def see(hidden: torch.Tensor) -> torch.Tensor:
                seen[address] = seen.get(address, True) and hidden.shape[0] == _BATCH
                return hidden

            map_hidden(output, see)

        return hook

    for address in addresses:
        clone.get_submodule(address).register_forward_hook(watch(address))
    for inputs in possible_inputs(backbone, _BATCH, _LENGTH):
        try:
            with torch.no_grad():
                clone(**inputs)
            break
        except Exception:  # noqa: BLE001, S112  # a model can raise anything on dummy inputs; the next set may work
            continue
    return {address for address, first in seen.items() if first}
