"""Attention that deltas can extend: calls to transformers' attention interface pass through the module's site first.

    attention(q, k, v, mask)    becomes    attention(q, [prefix; k], [prefix; v], [visible; mask])

Every attention that gets its function from `AttentionInterface.get_interface` (most architectures of transformers) receives
one that looks for a site on the module before it runs. No model's code or config is changed, and what a delta adds never
reaches the KV cache, so generation gives the same result with and without a cache.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.engine.site import CHILD, Site
from deltahub.errors import RouteError, TargetError

IMPLEMENTATIONS: Final = ("eager", "sdpa")  # the values of `attn_implementation` whose masks can be extended

_MARK: Final = "_deltahub_attends"
_NONE: Final[dict[str, Any]] = {}


@dataclass(frozen=True)
class AttentionCall:
    """The inputs of an attention call.

    Attributes:
        module: the attention.
        query: ``(batch, heads, queries, head_dim)``.
        key: ``(batch, kv_heads, keys, head_dim)``, including cached keys.
        value: ``(batch, kv_heads, keys, value_dim)``.
        attention_mask: True or 0 where a key is visible, ``(batch or 1, heads or 1, queries or 1, keys)``; None if all are.
        position_bias: added to the scores, ``(batch or 1, heads, queries, keys)``, in models that have one.
        causal: whether the kernel applies a causal mask itself as long as no mask is given.
        rows: rows of the batch to change, ``(batch,)`` of bool; None for all.
        places: number of keys that are prefixes so far.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    attention_mask: Tensor | None
    position_bias: Tensor | None
    causal: bool
    rows: Tensor | None = None
    places: int = 0

    def for_rows(self, rows: Tensor | None) -> Self:
        """Return the same call with changes restricted to some rows of the batch.

        Args:
            rows: ``(batch,)`` of bool; None for all.
        """
        return replace(self, rows=rows)

    def with_prefix(
        self, key: Tensor, value: Tensor, bias_table: nn.Module | None = None, *, shift_keys: bool = False
    ) -> Self:
        """Return the call with a prefix before its keys and values, visible to every query of the selected rows.

        Args:
            key: ``(places, kv_heads * head_dim)``, the heads side by side.
            value: ``(places, kv_heads * value_dim)``.
            bias_table: the attention that computes the relative bias to the prefix, as in T5; by default the one called, where it can.
            shift_keys: whether the relative bias counts the keys of the text on from the prefix, but not the queries.

        Raises:
            TargetError: the prefix does not have the width of the attention's heads, or another prefix is in the way.
            RouteError: the length of `rows` is not the batch size.
        """
        if self.rows is not None and len(self.rows) != self.key.shape[0]:
            msg = (
                f"An attention has {self.key.shape[0]} rows where the batch has {len(self.rows)} "
                f"({type(self.module).__name__}), so a prefix for some of them cannot be placed. Give every row the same deltas."
            )
            raise RouteError(msg)
        return replace(
            self,
            key=self._before(key, self.key),
            value=self._before(value, self.value),
            attention_mask=self._longer_mask(key.shape[0]),
            position_bias=(
                self._shifted_bias(key.shape[0], bias_table)
                if shift_keys and bias_table is not None
                else self._longer_bias(key.shape[0], bias_table)
            ),
            places=self.places + key.shape[0],
        )

    def _before(self, prefix: Tensor, states: Tensor) -> Tensor:
        batch, heads, _, width = states.shape
        if prefix.shape[1] != heads * width:
            msg = (
                f"A prefix of width {prefix.shape[1]} meets {heads} heads of width {width} in a {type(self.module).__name__}. "
                "Put it on the backbone that it was made for."
            )
            raise TargetError(msg)
        by_heads = prefix.to(states).view(-1, heads, width).transpose(0, 1)
        return torch.cat([by_heads.expand(batch, -1, -1, -1), states], dim=2)

    def _longer_mask(self, places: int) -> Tensor | None:
        mask, queries, keys = self.attention_mask, self.query.shape[2], self.key.shape[2]
        if mask is None:
            if not self.causal and self.rows is None:
                return None
            # Only sdpa masks by itself, and it accepts bool masks; eager adds the mask to the scores, so it must be numeric.
            mask = self.query.new_zeros(1, 1, queries, keys)
            mask = torch.ones_like(mask, dtype=torch.bool).tril() if self.causal else mask
        if mask.shape[-1] == 1:
            mask = mask.expand(*mask.shape[:-1], keys)
        if self.rows is None:
            return F.pad(mask, (places, 0), value=_visible(mask))
        mask = mask.expand(len(self.rows), *mask.shape[1:])
        hidden = False if mask.dtype == torch.bool else -torch.inf
        column = mask.new_full((len(self.rows), 1, 1, 1), _visible(mask))
        column = column.masked_fill(~self.rows.to(mask.device).view(-1, 1, 1, 1), hidden)
        return torch.cat([column.expand(*mask.shape[:-1], places), mask], dim=-1)

    def _longer_bias(self, places: int, table: nn.Module | None) -> Tensor | None:
        bias = self.position_bias
        if bias is None:
            return None
        if not hasattr(self.module, "has_relative_attention_bias"):
            return F.pad(bias, (places, 0))
        if table is not None or self.module.has_relative_attention_bias:
            past = places + self._seen()
            near = (table or self.module).compute_bias(bias.shape[2], places, device=bias.device, past_seen_tokens=past)  # type: ignore[operator]
            return torch.cat([near.to(bias).expand(*bias.shape[:-1], places), bias], dim=-1)
        # T5 passes the first layer's bias to the other layers. OpenDelta drops it in layers with a prefix, and trained
        # prefixes rely on that.
        row_mask = None if self.rows is None else self.rows.to(bias.device).view(-1, 1, 1, 1)
        bias = torch.zeros_like(bias) if row_mask is None else torch.where(row_mask, torch.zeros_like(bias), bias)
        return F.pad(bias, (places, 0))

    def _shifted_bias(self, places: int, table: nn.Module) -> Tensor | None:
        """Return the relative bias of all keys, prefix and text, counted from 0."""
        bias = self.position_bias
        if bias is None:
            return None
        if self.places and self.rows is None:
            msg = "A prefix with shift_keys must be the only one in its attention, and another one acts there before it. Detach one of them."
            raise TargetError(msg)
        text = bias.shape[3] - self.places
        shifted: Tensor = table.compute_bias(
            bias.shape[2], places + text, device=bias.device, past_seen_tokens=self._seen()
        )  # type: ignore[operator]
        if self.rows is None:
            return shifted.to(bias)
        near, far = torch.split(shifted.to(bias), [places, text], dim=-1)
        others = bias[..., : self.places]  # prefixes of other rows, which these rows do not see
        mine = torch.cat([near.expand(*others.shape[:-1], -1), others, far.expand(*others.shape[:-1], -1)], dim=-1)
        return torch.where(self.rows.to(bias.device).view(-1, 1, 1, 1), mine, F.pad(bias, (places, 0)))

    def _seen(self) -> int | Tensor:
        """Return the number of tokens before the first query; a static cache has more keys than that."""
        mask, queries, keys = self.attention_mask, self.query.shape[2], self.key.shape[2] - self.places
        if mask is None:
            return keys - queries if queries == 1 else 0  # as sdpa aligns them: several queries start at the first key
        if queries == keys or mask.dim() != 4 or mask.shape[2] != queries:
            return keys - queries
        last = mask[:, :, -1, -keys:]  # the last key visible to any row's last query is the query's own
        visible = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
        return (visible * torch.arange(1, keys + 1, device=mask.device)).amax() - queries


def _visible(mask: Tensor) -> float:
    return mask.dtype == torch.bool


def install() -> None:
    """Let sites act in every attention that uses transformers' interface; idempotent."""
    from transformers.modeling_utils import AttentionInterface  # late: takes seconds, and not every backbone needs it

    original = AttentionInterface.get_interface
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def get_interface(self: Any, attn_implementation: Any, default: Any) -> Any:
        return functools.partial(_attend, original(self, attn_implementation, default), attn_implementation)

    setattr(get_interface, _MARK, True)
    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign]


def _attend(
    function: Callable[..., Any],
    implementation: str | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Any:
    site = getattr(module, "_modules", _NONE).get(CHILD)
    if not isinstance(site, Site) or not (site.attends or site.detour is not None):
        return function(module, query, key, value, attention_mask, **options)
    check_implementation(implementation, type(module).__name__)
    bias = options.pop("position_bias", None)
    causal = implementation == "sdpa" and attention_mask is None and query.shape[2] > 1 and _is_causal(module, options)
    call = AttentionCall(module, query, key, value, attention_mask, bias, causal)
    if site.detour is not None:
        call = site.detour.attend(module, call)
    else:
        for insertion in site.attends:
            call = insertion.attend(module, call)
    if call.position_bias is not None:
        options["position_bias"] = call.position_bias
    return function(module, call.query, call.key, call.value, call.attention_mask, **options)


def _is_causal(module: nn.Module, options: dict[str, Any]) -> bool:
    """Return whether sdpa treats a call without a mask as causal: see `sdpa_attention_forward` in transformers."""
    option = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if option is None else option)


def check_implementation(implementation: str | None, name: str) -> None:
    """Raise unless an attention's kernel takes a mask that can be extended.

    Raises:
        TargetError: it does not.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        msg = (
            f"{name} computes attention with {implementation!r}, which cannot be extended by a prefix; expected one of "
            f'{", ".join(IMPLEMENTATIONS)}. Call backbone.set_attn_implementation("sdpa").'
        )
        raise TargetError(msg)


def goes_through_interface(module: nn.Module) -> bool:
    """Return whether a module's forward gets its function from transformers' attention interface, and runs no other."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is None or not {"ALL_ATTENTION_FUNCTIONS", "get_interface"} <= {*code.co_names}:
        return False
    return not getattr(module, "reorder_and_upcast_attn", False)  # GPT-2 then computes attention itself
