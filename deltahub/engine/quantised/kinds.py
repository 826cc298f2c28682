"""The kinds of quantised layers, and which one a layer is of."""

from __future__ import annotations

from typing import Final

from torch import nn

from deltahub.engine.quantised.bitsandbytes import EightBit, FourBit
from deltahub.engine.quantised.float8 import Float8
from deltahub.engine.quantised.layer import Quantised
from deltahub.engine.quantised.packed import Aqlm, Eetq, Hqq, Packed
from deltahub.engine.quantised.torchao import TorchaoTensor

KINDS: Final[tuple[type[Quantised], ...]] = (EightBit, FourBit, TorchaoTensor, Float8, Hqq, Eetq, Packed, Aqlm)


def quantised(layer: nn.Module) -> Quantised | None:
    """Return a layer as a quantised one of a known kind.

    Returns:
        None for a layer with a plain weight, for one without a weight, and for one of an unknown kind, whose codes nothing may read.
    """
    weight = layer._parameters.get("weight")
    is_float = type(weight) is nn.Parameter and weight.is_floating_point() and weight.dtype.itemsize > 1
    if is_float and "quant_state" not in layer.__dict__:  # FSDP makes bitsandbytes' codes a parameter in bfloat16
        return None  # plain; asked in every forward pass of some methods
    return next((found for kind in KINDS if (found := kind.of(layer)) is not None), None)
