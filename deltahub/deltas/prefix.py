"""Prefix tuning: trained keys and values before those of the text, in every attention.

    attention(q, [P_k; k], [P_v; v])        P_k: (n, kv_heads * head_dim), P_v: (n, kv_heads * value_dim), n places

By default one small network computes the prefixes of all layers; layer i takes its own rows of W_2 and b_2:

    [P_k; P_v] = W_2 tanh(W_1 E + b_1) + b_2        E: (n, embed_dim), W_1: (mid_dim, embed_dim), W_2: (all widths, mid_dim)

Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", https://arxiv.org/abs/2101.00190
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count
from deltahub.deltas.adapter_layers import without_defaults
from deltahub.deltas.precision import linear
from deltahub.deltas.shifted_positions import bias_table, shifts
from deltahub.engine.attention import AttentionCall, install
from deltahub.engine.attention_layers import Widths, attentions, key_value_widths
from deltahub.engine.building import Like
from deltahub.engine.insertion import Insertion
from deltahub.engine.modules import modules_by_name
from deltahub.engine.structure.names import StructureMap
from deltahub.engine.structure.targets import Target, find_targets, without_excluded
from deltahub.errors import ConfigError, NoMatchError, TargetError
from deltahub.handle.base import DeltaBase
from deltahub.renamed import renamed_in


@dataclass(frozen=True, kw_only=True)
class PrefixConfig(DeltaConfig):
    """Options of prefix tuning: the length of the prefix, and how it is computed.

    Args:
        prefix_token_num: places of the prefix, at least 1.
        reparameterize: whether one network computes the prefixes of all layers; otherwise they are parameters themselves.
        embed_dim: width of the network's input, at least 1.
        mid_dim: width of the network's hidden layer, at least 1.
        shift_positions: whether the text's positions begin after the prefix, as PEFT counts them; otherwise they begin at 0.
        shift_keys: whether only the keys of the text begin after the prefix, in relative biases as T5's; `adapters` counts them so.
    """

    prefix_token_num: Count = 6
    reparameterize: bool = True
    embed_dim: Count = 512
    mid_dim: Count = 512
    shift_positions: bool = False
    shift_keys: bool = False

    delta_type: ClassVar[str] = "prefix"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shift_positions and self.shift_keys:
            msg = "shift_positions moves queries and keys, shift_keys the keys alone. Leave out one of the two."
            raise ConfigError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the delta type and every option, as JSON types; what is off and unknown to older releases is left out."""
        return without_defaults(super().to_dict(), shift_positions=False, shift_keys=False)


class Prefix(Insertion):
    """The base class of insertions that put keys and values before those of an attention.

    Args:
        bias_table: the attention that computes the relative bias to the prefix, as in T5; by default the one extended, where it can.
        shift_keys: see `PrefixConfig`.
    """

    shift_keys = False  # also in pickles of earlier releases

    def __init__(self, bias_table: nn.Module | None = None, *, shift_keys: bool = False) -> None:
        super().__init__()
        self.bias_table = (bias_table,)  # in a tuple it is not a submodule
        self.shift_keys = shift_keys
        install()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        install()  # this may be a new process

    def attend(self, target: nn.Module, call: AttentionCall) -> AttentionCall:
        """Add the prefix, visible to every query regardless of its position and of the mask."""
        table = self.__dict__.get("bias_table", (None,))[0]
        return call.with_prefix(*self.key_and_value(call.key.dtype), table, shift_keys=self.shift_keys)

    def key_and_value(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the prefix of the keys, ``(n, kv_heads * head_dim)``, and of the values, ``(n, kv_heads * value_dim)``."""
        raise NotImplementedError


class PlainPrefix(Prefix):
    """A prefix stored as two parameters.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        widths: widths of keys and values, all heads together.
    """

    def __init__(self, like: Tensor, widths: Widths, config: PrefixConfig, bias_table: nn.Module | None = None) -> None:
        super().__init__(bias_table, shift_keys=config.shift_keys)
        self.past_key = nn.Parameter(like.new_empty(config.prefix_token_num, widths[0]))
        self.past_value = nn.Parameter(like.new_empty(config.prefix_token_num, widths[1]))
        if not like.is_meta:
            nn.init.normal_(self.past_key)
            nn.init.normal_(self.past_value)

    def key_and_value(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the parameters."""
        return self.past_key, self.past_value


class PrefixNetwork(nn.Module):
    """The network that computes the prefixes of all layers.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        width: total width of all keys and values of all layers.
    """

    def __init__(self, like: Tensor, width: int, config: PrefixConfig) -> None:
        super().__init__()
        dtype, device = like.dtype, like.device
        self.wte = nn.Embedding(config.prefix_token_num, config.embed_dim, dtype=dtype, device=device)
        self.control_trans = nn.Sequential(
            nn.Linear(config.embed_dim, config.mid_dim, dtype=dtype, device=device),
            nn.Tanh(),
            nn.Linear(config.mid_dim, width, dtype=dtype, device=device),
        )

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Compute only some features of every place, ``(n, stop - start)``, in at least the given precision."""
        last: Any = self.control_trans[2]
        if hasattr(last.weight, "full_tensor"):
            msg = (
                "The network that computes the prefixes is in the first attention and is sharded apart from the others that "
                "need it. Shard the backbone as a whole, or make the prefix with reparameterize=False."
            )
            raise ConfigError(msg)
        places = self.wte.weight.to(torch.promote_types(self.wte.weight.dtype, dtype))
        middle = self.control_trans[1](linear(cast("nn.Linear", self.control_trans[0]), places)).to(places.dtype)
        return F.linear(middle, last.weight[start:stop].to(middle.dtype), last.bias[start:stop].to(middle.dtype))


class ReparameterizedPrefix(Prefix):
    """A prefix computed by a network, which is a submodule in the first layer; the other layers only refer to it.

    Args:
        network: the network.
        start: index of this layer's first feature: its keys come first, then its values.
        owner: whether the network is a submodule of this insertion.
        shift_keys: see `PrefixConfig`.
    """

    def __init__(
        self,
        network: PrefixNetwork,
        start: int,
        widths: Widths,
        bias_table: nn.Module | None = None,
        *,
        owner: bool,
        shift_keys: bool,
    ) -> None:
        super().__init__(bias_table, shift_keys=shift_keys)
        self.shared = (network,)  # in a tuple it is not a submodule, so it is saved, trained and counted once
        self.start = start
        self.widths = widths
        if owner:
            self.reparams = network

    def key_and_value(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return this layer's features of the network."""
        states = self.shared[0].rows(self.start, self.start + sum(self.widths), dtype)
        return states[:, : self.widths[0]], states[:, self.widths[0] :]


class PrefixModel(DeltaBase):
    """A prefix in every addressed attention; by default in self-attention.

    Args:
        backbone_model: the model to modify.
        prefix_token_num: places of the prefix, at least 1.
        reparameterize: whether one network computes the prefixes of all layers.
        embed_dim: width of the network's input.
        mid_dim: width of the network's hidden layer.
        modified_modules: addresses of attentions, or of modules with attentions inside.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        shift_positions: whether the text's positions begin after the prefix, as PEFT counts them; otherwise they begin at 0.
        shift_keys: whether only the keys of the text begin after the prefix, in relative biases as T5's.
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "prefix"
    config_class = PrefixConfig
    default_modified_modules = ("attn@",)

    def __init__(
        self,
        backbone_model: nn.Module,
        prefix_token_num: int = 6,
        reparameterize: bool = True,
        embed_dim: int = 512,
        mid_dim: int = 512,
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        *,
        shift_positions: bool = False,
        shift_keys: bool = False,
        layers_to_transform: Sequence[int] | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = PrefixConfig(
            prefix_token_num=prefix_token_num,
            reparameterize=reparameterize,
            embed_dim=embed_dim,
            mid_dim=mid_dim,
            shift_positions=shift_positions,
            shift_keys=shift_keys,
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
            layers_to_transform=layers_to_transform,
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify)

    @classmethod
    def plan(cls, backbone: nn.Module, config: PrefixConfig) -> list[Target]:
        """Return the addressed attentions, and those inside the addressed modules."""
        every = attentions(backbone)
        names: set[str] = set()
        for target in super().plan(backbone, config):
            inside = {name for name in every if f"{name}.".startswith(f"{target.name}.")}
            if not inside or target.parts:
                msg = (
                    f"{target.name} ({type(target.module).__name__}) is not an attention that a prefix can extend, and contains "
                    f"none. This backbone has: {_shortened(list(every))}."
                )
                raise TargetError(msg)
            names |= inside
        chosen = [Target(name, module) for name, module in every.items() if name in names]
        return without_excluded(StructureMap.of(backbone), chosen, config.exclude_modules or ())

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: PrefixConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build a new prefix for every attention."""
        widths = key_value_widths(backbone, {target.name: target.module for target in targets})
        tables = _bias_tables(backbone, targets) if config.shift_positions or config.shift_keys else {}
        if config.shift_keys:
            tables = _of_text(tables, backbone)
        insertions: dict[str, Insertion] = {}
        if not config.reparameterize:
            for target in targets:
                table = tables.get(target.name)
                insertions[target.name] = PlainPrefix(like(target.module), widths[target.name], config, table)
            return {**insertions, **_shifts(backbone, config, targets)}
        network = PrefixNetwork(like(targets[0].module), sum(map(sum, widths.values())), config)
        start = 0
        for target in targets:
            own = widths[target.name]
            insertions[target.name] = ReparameterizedPrefix(
                network, start, own, tables.get(target.name), owner=not insertions, shift_keys=config.shift_keys
            )
            start += sum(own)
        return {**insertions, **_shifts(backbone, config, targets)}


def _stacks(backbone: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return the encoder and the decoder with any of these attentions, by name; the backbone itself if it is only one of them."""
    modules = modules_by_name(backbone)
    found = {}
    if getattr(getattr(backbone, "config", None), "is_encoder_decoder", False):
        for get in (backbone.get_encoder, backbone.get_decoder):
            stack: Any = get()  # type: ignore[operator]
            found.update({name: module for name, module in modules.items() if module is stack})
    return {
        name: stack
        for name, stack in (found or {"": backbone}).items()
        if any(_is_inside(inner, name) for inner in names)
    }


def _is_inside(name: str, outer: str) -> bool:
    return not outer or f"{name}.".startswith(f"{outer}.")


def _bias_tables(backbone: nn.Module, targets: Sequence[Target]) -> dict[str, nn.Module | None]:
    """Return for each attention the one that computes its relative bias, or None."""
    tables: dict[str, nn.Module | None] = {}
    for name, stack in _stacks(backbone, [target.name for target in targets]).items():
        tables |= {target.name: bias_table(stack) for target in targets if _is_inside(target.name, name)}
    return tables


def _of_text(tables: Mapping[str, nn.Module | None], backbone: nn.Module) -> dict[str, nn.Module | None]:
    """Return the tables of self-attentions; from a decoder to an encoder there is no relative bias.

    Raises:
        ConfigError: there are none.
    """
    crossed: set[str] = set()
    with suppress(NoMatchError):
        crossed = {target.name for target in find_targets(backbone, ("crossattn",), (), True)}
    own = {name: table for name, table in tables.items() if not any(_is_inside(name, outer) for outer in crossed)}
    if None in own.values() or not own:
        msg = f"shift_keys is for attentions with a relative bias, as in T5, and this {type(backbone).__name__} has none. Leave it out."
        raise ConfigError(msg)
    return own


def _shifts(backbone: nn.Module, config: PrefixConfig, targets: Sequence[Target]) -> dict[str, Insertion]:
    """Return the insertions that shift the positions of the text, where the config asks for it."""
    made: dict[str, Insertion] = {}
    if config.shift_positions:
        for name, stack in _stacks(backbone, [target.name for target in targets]).items():
            made |= shifts(stack, name, config.prefix_token_num)
    return made


def _shortened(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


__getattr__ = renamed_in(__name__, {"MadePrefix": "ReparameterizedPrefix"})
