"""The first and the last tokens of each row of a batch, without its padding, while a model runs.

    row    pad pad a b c d e        attention_mask 0 0 1 1 1 1 1        first two: a b        last two: d e

The mask is an argument of the model and not of the modules inside it, so an insertion at the model notes it for them. With a cache the
mask covers the tokens of earlier calls too, whose positions count.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.insertion import Args, Insertion, Kwargs
from deltahub.engine.modules import module_at
from deltahub.errors import TargetError

_MASK: Final = "attention_mask"
_CACHE: Final = "past_key_values"
_TEXT: Final = {"input_ids", "inputs_embeds"}


@dataclass
class Places:
    """Tokens of a call, some in each row.

    Attributes:
        index: their numbers in the call, ``(batch, n)``, within its length.
        valid: whether a row has the token, and has it in this call, ``(batch, n)``.
    """

    index: Tensor
    valid: Tensor


@dataclass
class _Call:
    """The rows of a running call.

    Attributes:
        start: the number of the first token of each row, ``(batch,)``; None for 0.
        end: the number after its last token, ``(batch,)``; None for that of the call.
        past: tokens of earlier calls.
    """

    start: Tensor | None
    end: Tensor | None
    past: int


class TokenPositions(Insertion):
    """An insertion without parameters that notes where the rows of a model's input begin and end.

    Args:
        backbone: the model, or a model around it.
        home: the name of the model in the backbone.
    """

    keeps_length = False

    def __init__(self, backbone: nn.Module, home: str) -> None:
        super().__init__()
        self.names = tuple(inspect.signature(type(module_at(backbone, home)).forward).parameters)[1:]
        self.call: _Call | None = None

    @staticmethod
    def home(backbone: nn.Module, address: str) -> str | None:
        """Return the name of the innermost model with a text and its mask that contains a module; None if there is none."""
        parts = address.split(".")
        for count in range(len(parts), -1, -1):
            name = ".".join(parts[:count])
            taken = inspect.signature(type(module_at(backbone, name)).forward).parameters.keys()
            if _MASK in taken and _TEXT & taken:
                return name
        return None

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Note the rows of a call.

        Raises:
            TargetError: the mask does not tell where rows begin and end.
        """
        arguments = dict(zip(self.names, args, strict=False)) | kwargs
        mask: Any = arguments.get(_MASK)
        cache: Any = arguments.get(_CACHE)
        past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        if mask is None:
            self.call = _Call(None, None, past)
            return args, kwargs
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            actual = list(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            msg = f"ReFT finds the first and the last tokens by an attention_mask (batch, tokens), got {actual}. Pass such a mask, or none."
            raise TargetError(msg)
        attended = mask == 1
        start = attended.int().argmax(1)
        self.call = _Call(start, start + attended.sum(1), past)
        return args, kwargs

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Forget the call."""
        self.call = None
        return output


def positions_for(
    holders: tuple[TokenPositions, ...], hidden: Tensor, first: int, last: int
) -> tuple[Places | None, Places | None]:
    """Return the first and the last tokens of each row of a hidden state; a token that is both counts among the last.

    Args:
        holders: the insertion at the model around the module; none if the model takes no mask.
        hidden: the hidden state, ``(batch, tokens, d)``.
        first: number of tokens at the start.
        last: number of tokens at the end.

    Raises:
        TargetError: the module was called when its model was not, or the last tokens are not known because tokens follow.
    """
    batch, length = hidden.shape[:2]
    call = holders[0].call if holders else _Call(None, None, 0)
    if call is None:
        msg = (
            "A module with ReFT was called outside of its model, as some kinds of gradient checkpointing do, so the positions of its tokens are "
            "not known. Train without it, and call the whole model."
        )
        raise TargetError(msg)
    if call.past and last:
        msg = "suffix_positions mean the last tokens of a whole text, which are not known while generate() adds to it. Use prefix_positions, or use_cache=False."
        raise TargetError(msg)
    known = call.start is not None and call.start.shape == (batch,)
    if call.start is not None and not known:
        msg = f"The attention_mask has {len(call.start)} rows, and a hidden state {batch}. Pass a mask for each row."
        raise TargetError(msg)
    start = hidden.new_zeros(batch, dtype=torch.long) if call.start is None else call.start.to(hidden.device)
    end = start + call.past + length if call.end is None else call.end.to(hidden.device)
    starts = start[:, None] + torch.arange(first, device=hidden.device)
    ends = end[:, None] - torch.arange(last, 0, -1, device=hidden.device)
    prefix = _places(starts, (starts < end[:, None] - last), call.past, length) if first else None
    suffix = _places(ends, ends >= start[:, None], call.past, length) if last else None
    return prefix, suffix


def _places(numbers: Tensor, valid: Tensor, past: int, length: int) -> Places:
    local = numbers - past
    return Places(local.clamp(0, length - 1), valid & (local >= 0) & (local < length))
