"""The initialisations of LoRA beside the default one, with PEFT's names.

    gaussian      A ~ N(0, 1/r^2), B = 0
    orthogonal    A = X1 Q1 / 10, B = X2 Q2 / 10; the rows of Q1 and Q2 are orthogonal to each other, so that B A = 0
    pissa         U S V^T = W, s B A = the r largest singular values: A = sqrt(S/s) V^T, B = U sqrt(S/s)
    pissa_niter_N the same by a randomised SVD with N subspace iterations
    olora         Q R = W, A and B from the first r rows of R and columns of Q

PiSSA and OLoRA take ``s B A`` out of the weight at the start, as their authors do. Here the backbone is never edited: the first A and B are
kept frozen beside the trained ones,

    y = W x + s (B A - B0 A0) x        A0, B0: A and B at the start

which is the same function with the same gradients, and is saved as a plain LoRA of rank 2 r, ``[B, -B0] [A; A0]``, that loads anywhere.

Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation", https://arxiv.org/abs/2404.02948
Buyukakyuz 2024, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2406.01775
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.deltas.lora_layers import LowRankUpdate
from deltahub.engine.weights import linear_weight
from deltahub.errors import ConfigError

DEFAULT: Final = "default"
_NITER: Final = re.compile(r"pissa_niter_(\d{1,3})")
_DRAWN: Final = ("gaussian", "orthogonal")
_FROM_DATA: Final[Mapping[str, str]] = {
    "eva": "the inputs of the layers",
    "lora_ga": "the gradients of a loss",
    "corda": "the inputs of the layers",
    "loftq": "the weights before they were quantised",
}


class AnchoredUpdate(LowRankUpdate):
    """A low-rank update less its own value at the start, for initialisations by which ``B A`` is not zero."""

    def __init__(
        self, like: Tensor, n_in: int, n_out: int, rank: int, scale: float, dropout: float = 0.0, *, bias: bool = False
    ) -> None:
        super().__init__(like, n_in, n_out, rank, scale, dropout, bias=bias)
        self.register_buffer("start_A", self.lora_A.detach().clone())
        self.register_buffer("start_B", self.lora_B.detach().clone())
        self.start_A: Tensor
        self.start_B: Tensor

    def update(self, x: Tensor, output: Tensor) -> Tensor:
        """Compute ``s (B A - B0 A0) x``, ``(..., n_out)``; as it is part of the weight, the start has no dropout."""
        dtype = self.precision(output)
        low = F.linear(x.to(dtype), self.start_A.to(dtype))
        return super().update(x, output) - self.scale * F.linear(low, self.start_B.to(dtype))

    def product(self, dtype: torch.dtype) -> Tensor:
        """Compute ``B A - B0 A0``, ``(n_out, n_in)``."""
        return super().product(dtype) - self.start_B.to(dtype) @ self.start_A.to(dtype)


def check_initialisation(name: str) -> None:
    """Refuse an initialisation that is unknown, or that needs data.

    Raises:
        ConfigError: the message lists those that there are.
    """
    if name in (DEFAULT, *_DRAWN) or is_anchored(name):
        return
    if name in _FROM_DATA:
        msg = f"init_lora_weights={name!r} needs {_FROM_DATA[name]}, which a config does not have."
        raise ConfigError(
            f"{msg} Call delta.initialize_eva(batches) on a LoRA with the default initialisation."
            if name == "eva"
            else f"{msg} It is not supported; 'pissa' and 'olora' need the weights alone."
        )
    msg = f"init_lora_weights={name!r} is unknown; expected True, 'gaussian', 'orthogonal', 'pissa', 'pissa_niter_N' or 'olora'."
    raise ConfigError(msg)


def is_anchored(name: str) -> bool:
    """Return whether an initialisation starts at values that are taken out again (`AnchoredUpdate`)."""
    return name in ("pissa", "olora") or _NITER.fullmatch(name) is not None


@torch.no_grad()
def initialise(insertion: LowRankUpdate, name: str, layer: nn.Module, address: str) -> None:
    """Set A and B of a new update.

    Args:
        name: the initialisation, not the default one.
        layer: the layer of the update, or the rows of a fused one.
        address: the real name of the layer, for messages.

    Raises:
        ConfigError: the rank does not allow it.
    """
    a, b = insertion.lora_A, insertion.lora_B
    if name == "gaussian":
        nn.init.normal_(a, std=1 / len(a))
        return
    wide = torch.promote_types(a.dtype, torch.float32)
    if name == "orthogonal":
        if len(a) % 2:
            msg = f"init_lora_weights='orthogonal' needs an even rank, and that of {address} is {len(a)}."
            raise ConfigError(msg)
        q = torch.linalg.qr(torch.randn(len(a), len(a), dtype=wide, device=a.device))[0]
        a.copy_((torch.randn(a.shape[1], len(a) // 2, dtype=wide, device=a.device) @ q[0::2]).T / 10)
        b.copy_(torch.randn(len(b), len(a) // 2, dtype=wide, device=a.device) @ q[1::2] / 10)
        return
    assert isinstance(insertion, AnchoredUpdate)
    weight = linear_weight(layer).detach().to(device=a.device, dtype=wide)
    if len(a) > min(weight.shape):
        msg = (
            f"init_lora_weights={name!r} needs a rank of at most {min(weight.shape)} at {address}, and it is {len(a)}."
        )
        raise ConfigError(msg)
    down, up = _factors(weight, name, len(a), insertion.full_scale)
    for values, tensors in ((down, (a, insertion.start_A)), (up, (b, insertion.start_B))):
        for tensor in tensors:
            tensor.copy_(values)


def _factors(weight: Tensor, name: str, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A and B of PiSSA or OLoRA for a weight, ``(n_out, n_in)``."""
    if name == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    if match := _NITER.fullmatch(name):
        u, s, v = torch.svd_lowrank(weight, rank, niter=int(match[1]))
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / abs(scale)).sqrt()
    return math.copysign(1, scale) * root[:, None] * vh[:rank], u[:, :rank] * root


def plain_form(config: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Return the config and the tensors of a LoRA as it is saved: without its start, which a plain LoRA of twice the rank includes.

    Args:
        config: the config of the LoRA.
        tensors: all its tensors by name.
    """
    if not is_anchored(config.init_lora_weights):
        return replace(config, init_lora_weights=DEFAULT), dict(tensors)
    plain = dict(tensors)
    for name in [name for name in tensors if name.endswith(".start_A")]:
        place = name.removesuffix("start_A")
        plain[f"{place}lora_A"] = torch.cat([tensors[f"{place}lora_A"], plain.pop(name)])
        plain[f"{place}lora_B"] = torch.cat([tensors[f"{place}lora_B"], -plain.pop(f"{place}start_B")], dim=1)
    factor = math.sqrt(2) if config.use_rslora else 2  # keeps the scale of each module
    options = {
        "init_lora_weights": DEFAULT,
        "lora_r": 2 * config.lora_r,
        "lora_alpha": factor * config.lora_alpha,
        "rank_pattern": {address: 2 * rank for address, rank in config.rank_pattern.items()},
        "alpha_pattern": {address: factor * alpha for address, alpha in config.alpha_pattern.items()},
    }
    return replace(config, **options), plain
