"""Insertions that put soft tokens before a model's input; no argument of the caller is changed in place.

input_ids (batch, tokens)    becomes    inputs_embeds (batch, n + tokens, hidden)    and related arguments grow too
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.engine.insertion import Args, Insertion, Kwargs
from deltahub.engine.modules import module_at, own_modules
from deltahub.errors import ConfigError
from deltahub.renamed import renamed_in

MASK: Final = "attention_mask"
_LABELS: Final = {"labels": -100}  # ignored by transformers' losses
_PLACES: Final = ("start_positions", "end_positions")  # labels that are positions
_TABLES: Final = {"wpe", "position_embeddings", "position_embedding", "embed_positions", "positions_embed"}
_AGAIN: Final = (
    "A cache that an earlier generate() filled cannot be handed to another: give it the whole text without one."
)


class InputExtension(Insertion):
    """The base class of insertions that change a model's arguments one by one.

    Args:
        target: the model.
        places: number of soft tokens.
        fills: arguments with an entry for each token, and their value for soft tokens.
    """

    keeps_length = False

    def __init__(self, target: nn.Module, places: int, fills: Mapping[str, int]) -> None:
        super().__init__()
        self.names = tuple(inspect.signature(type(target).forward).parameters)[1:]
        self.places = places
        self.fills = {MASK: 1, **fills}

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Pass all arguments on by name, as `extended` returns them."""
        return (), self.extended(target, dict(zip(self.names, args, strict=False)) | kwargs)

    def extended(self, target: nn.Module, arguments: Kwargs) -> Kwargs:
        """Return the changed arguments."""
        raise NotImplementedError

    def extended_mask(self, arguments: Kwargs, tokens: int, *, twice: bool = True) -> Kwargs:
        """Return the mask over soft tokens and text, if there is one.

        Args:
            tokens: length of the text, including cached tokens.
            twice: whether the mask may have grown already, in the model around this one.

        Raises:
            ConfigError: the mask covers something else.
        """
        mask = arguments.get(MASK)
        if mask is None:
            return {}
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == tokens:
            return {MASK: F.pad(mask, (self.places, 0), value=self.fills[MASK])}
        if twice and isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == tokens + self.places:
            return {}
        actual = list(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        msg = (
            f"With a soft prompt the attention_mask must have an entry for each token, (batch, {tokens}), got {actual}. "
            f"Masks of four dimensions are not taken. {_AGAIN}"
        )
        raise ConfigError(msg)


class SoftTokens(InputExtension):
    """Soft tokens before the text given to a decoder or an encoder.

    Args:
        soft: their initial embeddings, ``(n, hidden)``.
        target: the model.
        fills: other arguments with an entry for each token, and their value for soft tokens.

    Raises:
        ConfigError: the soft tokens leave no position for a text.
    """

    def __init__(self, soft: Tensor, target: nn.Module, fills: Mapping[str, int]) -> None:
        super().__init__(target, len(soft), fills)
        self.limit = _learned_positions(target)
        self.soft_embeds = nn.Parameter(soft)
        self._check_limit(1, 0)

    def extended(self, target: nn.Module, arguments: Kwargs) -> Kwargs:
        """Put the soft tokens in front, unless a cache already holds them."""
        ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
        text: Any = ids if embeds is None else embeds
        if text is None:
            return arguments
        tokens, cached = text.shape[1], _cached(arguments)
        self._check_limit(tokens, cached)
        end = tokens + max(cached - self.places, 0)
        positions = arguments.get("position_ids")
        if cached and positions is not None and arguments.get(MASK) is None:
            _check_end(positions, end)
        arguments = {**arguments, **self.extended_mask(arguments, end, twice=not cached)}
        if cached:
            return arguments if positions is None else {**arguments, "position_ids": positions + self.places}
        if embeds is None:
            embeds = target.get_input_embeddings()(ids)  # type: ignore[operator]
        soft = self.soft_embeds.to(embeds).expand(len(embeds), -1, -1)
        extended = {"input_ids": None, "inputs_embeds": torch.cat([soft, embeds], dim=1)}
        for key, fill in {**self.fills, **_LABELS}.items():
            value = arguments.get(key)
            if key != MASK and isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == tokens:
                extended[key] = torch.cat(
                    [value.new_full((len(value), self.places, *value.shape[2:]), fill), value], dim=1
                )
        for key in _PLACES:
            if isinstance(value := arguments.get(key), Tensor):
                extended[key] = value + self.places
        if positions is not None:
            first = torch.arange(self.places, dtype=positions.dtype, device=positions.device)
            extended["position_ids"] = torch.cat(
                [first.expand(*positions.shape[:-1], -1), positions + self.places], dim=-1
            )
        return {**arguments, **extended}

    def _check_limit(self, tokens: int, cached: int) -> None:
        length = tokens + (cached or self.places)
        if self.limit is not None and length > self.limit:
            msg = (
                f"{self.places} soft tokens and a text of {length - self.places} make {length}, and this model has learned "
                f"{self.limit} positions. Cut the text to {max(self.limit - self.places, 0)} tokens, or use fewer soft tokens."
            )
            raise ConfigError(msg)


class MaskExtension(InputExtension):
    """An insertion without parameters that lets a decoder see the soft tokens in its encoder's output."""

    def extended(self, target: nn.Module, arguments: Kwargs) -> Kwargs:
        """Extend the mask that encoder and cross-attention share."""
        encoded = arguments.get("encoder_outputs")
        text: Any = arguments.get("input_ids") if arguments.get("inputs_embeds") is None else arguments["inputs_embeds"]
        if encoded is not None:
            return {**arguments, **self.extended_mask(arguments, encoded[0].shape[1] - self.places)}
        return arguments if text is None else {**arguments, **self.extended_mask(arguments, text.shape[1])}


class BareEmbeddings(Insertion):
    """An insertion that returns the embeddings given to an embedding module unchanged, without positions and normalisation.

    DistilBERT did so up to transformers 4, and soft tokens trained on it rely on that.
    """

    keeps_length = False

    def __init__(self, target: nn.Module) -> None:
        super().__init__()
        self.place = [*inspect.signature(type(target).forward).parameters].index("inputs_embeds") - 1

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Return the given embeddings, ``(batch, tokens, hidden)``, if there are any, else the output for the text."""
        embeddings = args[self.place] if len(args) > self.place else kwargs.get("inputs_embeds")
        return output if embeddings is None else embeddings


def home_of_embeddings(target: nn.Module) -> str:
    """Return the name of the module that contains a model's token embeddings; ``""`` for the model itself."""
    embeddings = target.get_input_embeddings()  # type: ignore[operator]
    return next((name.rpartition(".")[0] for name, module in own_modules(target) if module is embeddings), "")


def _cached(arguments: Kwargs) -> int:
    """Return the number of positions in a cache, soft tokens included.

    Raises:
        ConfigError: the cache does not grow, or does not reveal its length.
    """
    if arguments.get("cache_params") is not None:
        msg = (
            "The state of this model does not tell whether it has seen the soft tokens. Call generate(use_cache=False)."
        )
        raise ConfigError(msg)
    cache = arguments.get("past_key_values")
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length") or getattr(cache, "is_compileable", False):
        msg = (
            f"Soft tokens need room in the cache, and a {type(cache).__name__} does not grow. Use a DynamicCache, as generate() "
            "does where no cache_implementation is given."
        )
        raise ConfigError(msg)
    return int(cache.get_seq_length())


def _check_end(positions: Tensor, end: int) -> None:
    """Raise if a text does not continue where the cache ends: generate() counts cached soft tokens as text.

    Raises:
        ConfigError: it does not. Without a mask there is no padding, so positions reveal it.
    """
    if positions.dim() == 2 and not torch.compiler.is_compiling() and int(positions.max()) + 1 != end:
        msg = f"The text must go on to position {end - 1} after what the cache holds, got {int(positions.max())}. {_AGAIN}"
        raise ConfigError(msg)


def _learned_positions(target: nn.Module) -> int | None:
    """Return the number of positions in a model's table beside its token embeddings, or None if it has no table.

    Rotary and relative positions have no limit, regardless of the trained length in the config.
    """
    for key, table in module_at(target, home_of_embeddings(target))._modules.items():
        if key in _TABLES and isinstance(table, nn.Embedding):
            skipped = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa counts from there
            return table.num_embeddings - skipped - int(getattr(table, "offset", 0))  # OPT and BART skip some too
    return None


__getattr__ = renamed_in(__name__, {"LongerMask": "MaskExtension"})
