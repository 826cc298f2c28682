"""Parallel adapters: a bottleneck beside a module, from its input to its output.

    y = f(x) + s (W_up act(W_down x + b_down) + b_up)        W_down: (bottleneck, n_in), W_up: (n_out, bottleneck)

`f` is one module, or a span of the backbone: from the input of a first module to the output of a second.

He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", https://arxiv.org/abs/2110.04366
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.checkpoint.address import value_for
from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Text
from deltahub.deltas.adapter_layers import (
    activation,
    refuse_channels_first,
    small_linear,
    without_defaults,
)
from deltahub.deltas.precision import added, linear, widened
from deltahub.deltas.target_checks import refuse_unmatched
from deltahub.engine.building import Like, addressed
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input, map_hidden
from deltahub.engine.modules import own_modules
from deltahub.engine.shapes import input_widths, output_widths
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError, NoMatchError, TargetError
from deltahub.handle.base import DeltaBase
from deltahub.renamed import renamed_in


@dataclass(frozen=True, kw_only=True)
class ParallelAdapterConfig(DeltaConfig):
    """Options of parallel adapters.

    Args:
        modified_modules: pairs of addresses: where the bottleneck reads its input, and where it adds its output. The same
            address twice means one module.
        bottleneck_dim: width of the bottleneck, at least 1.
        non_linearity: see `AdapterConfig`.
        scaled: factor of its output.
        bottleneck_pattern: widths of single bottlenecks, by real address of the module that gives the input, instead of
            `bottleneck_dim`; the first address that matches counts.
    """

    bottleneck_dim: Count = 24
    non_linearity: Text = "gelu_new"
    scaled: float = 1.0
    bottleneck_pattern: Mapping[str, Count] = field(default_factory=dict)

    delta_type: ClassVar[str] = "parallel_adapter"

    def to_dict(self) -> dict[str, Any]:
        """Return the delta type and every option, as JSON types; what is off and unknown to older releases is left out."""
        return without_defaults(super().to_dict(), bottleneck_pattern={})


class ParallelBottleneck(Insertion):
    """A bottleneck beside one module.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        n_in: width of the input.
        n_out: width of the output.
        bottleneck: width of the bottleneck.
    """

    def __init__(self, like: Tensor, n_in: int, n_out: int, bottleneck: int, config: ParallelAdapterConfig) -> None:
        super().__init__()
        self.down_proj = small_linear(n_in, bottleneck, like)
        self.activation = activation(config.non_linearity)
        self.up_proj = small_linear(bottleneck, n_out, like)
        self.scaled = config.scaled

    def update(self, args: Args, kwargs: Kwargs) -> Tensor:
        """Compute the update: input tensor with shape ``(..., n_in)``, output ``(..., n_out)``."""
        x = widened(first_input(args, kwargs), self.down_proj.weight)
        return self.scaled * linear(self.up_proj, self.activation(linear(self.down_proj, x)).to(x.dtype))

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update to the hidden state, shape ``(..., n_out)``; other outputs of the module pass through."""
        update = self.update(args, kwargs)
        return map_hidden(output, lambda hidden: added(hidden, update))


class Handover(threading.local):
    """Carrier of an update from the start of a span to its end, thread-local because several threads may run one backbone.

    A copy is empty: an update belongs to one call.
    """

    update: Tensor | None = None

    def __reduce__(self) -> tuple[type[Handover], tuple[()]]:
        return Handover, ()

    def take(self) -> Tensor:
        """Return the update, once.

        Raises:
            TargetError: the start was not called.
        """
        if self.update is None:
            msg = "A parallel adapter was reached at its second module without its first. Address two that run in turn."
            raise TargetError(msg)
        update, self.update = self.update, None
        return update


class SpanStart(ParallelBottleneck):
    """A bottleneck that reads the input of a module, for a later module to add.

    Args:
        handover: shared with the `SpanEnd`.
    """

    def __init__(
        self, like: Tensor, n_in: int, n_out: int, bottleneck: int, config: ParallelAdapterConfig, handover: Handover
    ) -> None:
        super().__init__(like, n_in, n_out, bottleneck, config)
        self.handover = handover

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Compute the update from the input, which passes unchanged."""
        self.handover.update = self.update(args, kwargs)
        return args, kwargs

    after = Insertion.after


class SpanEnd(Insertion):
    """The end of a span: adds the update that a `SpanStart` computed at an earlier module.

    Args:
        handover: shared with the `SpanStart`.
    """

    def __init__(self, handover: Handover) -> None:
        super().__init__()
        self.handover = handover

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update to the hidden state, shape ``(..., n_out)``; other outputs of the module pass through.

        Raises:
            TargetError: the first module was not called before, or was called with another batch.
        """
        update = self.handover.take()
        return map_hidden(output, lambda hidden: _sum(hidden, update))


def _sum(hidden: Tensor, update: Tensor) -> Tensor:
    if hidden.shape != update.shape:
        msg = (
            f"A parallel adapter made {list(update.shape)} at its first module, and its second returns {list(hidden.shape)}. "
            "Address two that run in turn on the same tokens."
        )
        raise TargetError(msg)
    return added(hidden, update)


class ParallelAdapterModel(DeltaBase):
    """Parallel adapters; by default one beside each attention and one beside each feed-forward.

    Args:
        backbone_model: the model to modify.
        bottleneck_dim: width of the bottleneck, at least 1.
        non_linearity: the activation: see `AdapterConfig`.
        modified_modules: pairs of addresses: see `ParallelAdapterConfig`.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: modules that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a port, to choose the modules on a web page.
        backend: only ``"hf"``.
        scaled: factor of the bottleneck's output.
        bottleneck_pattern: widths of single bottlenecks: see `ParallelAdapterConfig`.
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's dtype if it is wider.
    """

    delta_type = "parallel_adapter"
    config_class = ParallelAdapterConfig
    default_modified_modules = ("attn@", "attn@", "ff@.w1@", "ff@.w2@")
    addresses_each = 2

    def __init__(
        self,
        backbone_model: nn.Module,
        bottleneck_dim: int = 24,
        non_linearity: str = "gelu_new",
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        backend: str = "hf",
        *,
        scaled: float = 1.0,
        bottleneck_pattern: Mapping[str, int] | None = None,
        layers_to_transform: Sequence[int] | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = ParallelAdapterConfig(
            bottleneck_dim=bottleneck_dim,
            non_linearity=non_linearity,
            scaled=scaled,
            bottleneck_pattern=dict(bottleneck_pattern or {}),
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
            layers_to_transform=layers_to_transform,
        )
        super().__init__(
            backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify, backend=backend
        )

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Return the targets, all of which have the width of their hidden state in the last dimension."""
        refuse_channels_first(targets)
        return targets

    @classmethod
    def plan(cls, backbone: nn.Module, config: ParallelAdapterConfig) -> list[Target]:
        """Return the modules of every pair of addresses, first and last in turn."""
        return [target for pair in _spans(cls, backbone, config) for target in pair]

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: ParallelAdapterConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Create a bottleneck for each single module, and a start and an end for each pair."""
        modules = {target.name: target.module for target in targets}
        refuse_unmatched(config.bottleneck_pattern, "bottleneck_pattern", [target.name for target in targets[::2]])
        n_in, n_out = input_widths(backbone, modules), output_widths(backbone, modules)
        insertions: dict[str, Insertion] = {}
        for first, second in zip(targets[::2], targets[1::2], strict=True):
            if first.name in insertions or second.name in insertions:
                msg = f"{first.name} or {second.name} is meant twice. Name each module in one pair of addresses only."
                raise ConfigError(msg)
            bottleneck = value_for(config.bottleneck_pattern, first.name, config.bottleneck_dim)
            width, sample = (n_in[first.name], n_out[second.name], bottleneck), like(first.module)
            if first.name == second.name:
                insertions[first.name] = ParallelBottleneck(sample, *width, config)
            else:
                handover = Handover()
                insertions[first.name] = SpanStart(sample, *width, config, handover)
                insertions[second.name] = SpanEnd(handover)
        return insertions


def _spans(
    method: type[DeltaBase], backbone: nn.Module, config: ParallelAdapterConfig
) -> Iterator[tuple[Target, Target]]:
    """Yield the first and last module of every span.

    Raises:
        ConfigError: the number of addresses is odd.
        TargetError: the modules of a pair do not alternate.
        NoMatchError: an address matches nothing.
    """
    patterns = config.modified_modules or ()
    if len(patterns) % 2:
        msg = (
            f"modified_modules of a parallel adapter are pairs, from the input of one module to the output of another, got "
            f"{len(patterns)} addresses: {list(patterns)}. For one module write its address twice."
        )
        raise ConfigError(msg)
    has_span = False
    for first, second in zip(patterns[::2], patterns[1::2], strict=True):
        try:
            starts, ends = (
                addressed(method, backbone, replace(config, modified_modules=(pattern,))) for pattern in (first, second)
            )
        except NoMatchError:
            if {first, second} <= {*method.default_modified_modules} and (has_span or patterns[-1] != second):
                continue  # a default may match nothing if another one matches
            raise
        has_span = True
        yield from (
            zip(starts, ends, strict=True)
            if first == second
            else _alternating_pairs(backbone, first, second, starts, ends)
        )


def _alternating_pairs(
    backbone: nn.Module, first: str, second: str, starts: list[Target], ends: list[Target]
) -> Iterator[tuple[Target, Target]]:
    order = {name: number for number, (name, _) in enumerate(own_modules(backbone))}
    marked = sorted([(order[t.name], 0) for t in starts] + [(order[t.name], 1) for t in ends])
    alternate = all(current[1] != other[1] for current, other in pairwise(marked))
    if len(starts) != len(ends) or not alternate:
        msg = (
            f"{first!r} means {len(starts)} modules and {second!r} means {len(ends)}, which do not take turns: "
            f"{', '.join(t.name for t in (*starts[:2], *ends[:2]))}, ... Write addresses of which each start has one end."
        )
        raise TargetError(msg)
    yield from zip(starts, ends, strict=True)


__getattr__ = renamed_in(__name__, {"StretchStart": "SpanStart", "StretchEnd": "SpanEnd"})
