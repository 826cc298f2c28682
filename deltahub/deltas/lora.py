"""LoRA: a low-rank update beside a linear layer.

    y = W x + (alpha / r) B A x        A: (r, n_in), B: (n_out, r), B = 0 at the start

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.config import DeltaConfig
from deltahub.engine.delta import DeltaBase
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.shapes import linear_shape
from deltahub.engine.structure import Target


@dataclass(frozen=True, kw_only=True)
class LoraConfig(DeltaConfig):
    """How large the update is, and how it is scaled.

    Args:
        lora_r: rank of the update, at least 1.
        lora_alpha: the update is scaled by ``lora_alpha / lora_r``.
        lora_dropout: share of the input that is dropped in training, from 0 to less than 1.
    """

    lora_r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0

    delta_type: ClassVar[str] = "lora"


class LowRankUpdate(Insertion):
    """Adds ``scale * B A x`` to the output of a linear layer.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        n_in: width of the input.
        n_out: width of the output.
    """

    def __init__(self, like: Tensor, n_in: int, n_out: int, config: LoraConfig) -> None:
        super().__init__()
        self.scale = config.lora_alpha / config.lora_r
        self.dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else None
        self.lora_A = nn.Parameter(like.new_empty(config.lora_r, n_in))
        self.lora_B = nn.Parameter(like.new_zeros(n_out, config.lora_r))
        if not like.is_meta:
            self.reset()

    def reset(self) -> None:
        """Draw A as a linear layer's weight is drawn; B stays zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def low_rank(self, x: Tensor) -> Tensor:
        """``A x``: input tensor with shape ``(..., n_in)``, output ``(..., r)``."""
        x = x.to(self.lora_A.dtype)
        return F.linear(x if self.dropout is None else self.dropout(x), self.lora_A)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Output tensor with shape ``(..., n_out)``."""
        update = F.linear(self.low_rank(first_input(args, kwargs)), self.lora_B)
        return output + (self.scale * update).to(output.dtype)


class LowRankRows(LowRankUpdate):
    """The same for an embedding, whose inputs are row numbers; A starts at zero, as in the authors' own code."""

    def reset(self) -> None:
        """Draw B; A is zero."""
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def low_rank(self, x: Tensor) -> Tensor:
        """Rows of A: input tensor of indices with shape ``(...)``, output ``(..., r)``."""
        return F.embedding(x, self.lora_A.T)


class LoraModel(DeltaBase):
    """LoRA at every linear layer that is addressed; by default the q and v projections of self-attention.

    Args:
        backbone_model: the model to modify.
        lora_r: rank of the update, at least 1.
        lora_alpha: the update is scaled by ``lora_alpha / lora_r``.
        lora_dropout: share of the input that is dropped in training.
        modified_modules: addresses of linear layers, Conv1D layers or embeddings.
        unfrozen_modules: what `freeze_module` leaves trainable.
        exclude_modules: addresses of what is left out.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a port of this machine, to choose the modules on a page.
        backend: only ``"hf"``.
        name: the delta's name on this backbone.
    """

    delta_type = "lora"
    config_class = LoraConfig
    default_modified_modules = ("attn@.q@", "attn@.v@")

    def __init__(
        self,
        backbone_model: nn.Module,
        lora_r: int = 8,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        modified_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        backend: str = "hf",
        *,
        name: str | None = None,
    ) -> None:
        config = LoraConfig.from_dict(
            {
                "lora_r": lora_r,
                "lora_alpha": lora_alpha,
                "lora_dropout": lora_dropout,
                "modified_modules": modified_modules,
                "unfrozen_modules": unfrozen_modules,
                "exclude_modules": exclude_modules,
                "common_structure": common_structure,
            }
        )
        super().__init__(backbone_model, config, name=name, interactive_modify=interactive_modify, backend=backend)

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Only linear layers will do."""
        for target in targets:
            linear_shape(target.name, target.module)
        return targets

    @classmethod
    def new_insertion(cls, config: LoraConfig, target: Target, width: int, like: Tensor) -> LowRankUpdate:
        """A fresh update for one layer, or for `width` rows of a fused one."""
        n_in, _ = linear_shape(target.name, target.module)
        kind = LowRankRows if isinstance(target.module, nn.Embedding) else LowRankUpdate
        return kind(like, n_in, width, config)
