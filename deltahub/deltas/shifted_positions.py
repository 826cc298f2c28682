"""Positions counted after a prefix, as if its places were text before the text.

    table[p]  becomes  table[p + n],    rotary(p)  becomes  rotary(p + n)        p: position of a token, n: places of the prefix

PEFT hands a prefix to the model as keys and values that it has seen already, so the model counts on from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn

from deltahub.engine.insertion import Args, Insertion, Kwargs
from deltahub.engine.modules import own_modules
from deltahub.errors import TargetError

_TABLES: Final = {"wpe", "position_embeddings", "position_embedding", "embed_positions", "positions_embed"}
_POSITIONS: Final = "position_ids"


class ShiftedPositions(Insertion):
    """An insertion without parameters that adds to the positions given to a table or to rotary embeddings.

    Args:
        target: the table or the rotary embeddings.
        places: what to add.
    """

    keeps_length = False  # rows that are computed alone would get the positions of all

    def __init__(self, target: nn.Module, places: int) -> None:
        super().__init__()
        names = list(inspect.signature(type(target).forward).parameters)[1:]
        self.name = _POSITIONS if _POSITIONS in names else names[0]
        self.place = names.index(self.name)
        self.places = places
        self.padding: int | None = getattr(target, "padding_idx", None)  # the position of padding, which stays

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Add to the positions, ``(batch, tokens)``; negative ones and that of padding stay."""
        if len(args) > self.place:
            return (*args[: self.place], self._shifted(target, args[self.place]), *args[self.place + 1 :]), kwargs
        return args, {**kwargs, self.name: self._shifted(target, kwargs.get(self.name))}

    def _shifted(self, target: nn.Module, positions: Any) -> Tensor:
        if not isinstance(positions, Tensor):
            msg = f"A {type(target).__name__} was called without positions, which the prefix has to shift. Use the prefix on another model."
            raise TargetError(msg)
        moves = positions >= 0
        if self.padding is not None:
            moves = moves & (positions != self.padding)
        return positions + self.places * moves.to(positions.dtype)


def shifts(stack: nn.Module, prefix: str, places: int) -> Mapping[str, Insertion]:
    """Return the insertions that shift all positions of a model, by module name.

    Args:
        stack: the model with the text that follows the prefix: a decoder, or an encoder.
        prefix: the name of that model in the backbone.
        places: places of the prefix.

    Raises:
        TargetError: it is not known where the model's positions enter.
    """
    if getattr(getattr(stack, "config", None), "alibi", False) or "sliding_attention" in (_layer_types(stack) or ()):
        msg = f"In this {type(stack).__name__} the distance to the prefix counts (ALiBi or sliding windows), which a shifted prefix cannot follow."
        raise TargetError(msg)
    made: dict[str, Insertion] = {}
    for name, module in own_modules(stack):
        if _takes_positions(name.rpartition(".")[2], module):
            made[f"{prefix}.{name}".removeprefix(".")] = ShiftedPositions(module, places)
    if not made and bias_table(stack) is None:
        msg = f"It is not known where positions enter this {type(stack).__name__}, so a prefix cannot shift them."
        raise TargetError(msg)
    return made


def _layer_types(stack: nn.Module) -> Any:
    return getattr(getattr(stack, "config", None), "layer_types", None)


def _takes_positions(key: str, module: nn.Module) -> bool:
    if key in _TABLES and isinstance(module, nn.Embedding):
        own = type(module).forward is not nn.Embedding.forward
        return not own or _POSITIONS in inspect.signature(type(module).forward).parameters
    return (
        "rotary" in type(module).__name__.lower() and _POSITIONS in inspect.signature(type(module).forward).parameters
    )


def bias_table(stack: nn.Module) -> nn.Module | None:
    """Return the attention that computes the relative bias for all layers of a model, as in T5, or None."""
    return next(
        (module for _, module in own_modules(stack) if getattr(module, "has_relative_attention_bias", False)), None
    )
