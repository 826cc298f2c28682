"""The base class of insertions, each the work of a delta at one module, and helpers for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from types import NoneType
from typing import Any, ClassVar, Final, Self, cast

import torch
from torch import Tensor, nn

from deltahub.errors import ConfigError, MergeError, TargetError

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

_PLAIN: Final = frozenset({NoneType, bool, int, float, str})  # types of values that nn.Module keeps as they are


class Insertion(nn.Module):
    """The work of a delta at one target; a subclass overrides `before`, `after`, `attend` or `substitute`.

    Attributes:
        keeps_length: whether it keeps the shapes of its inputs and outputs, so that rows of a batch can pass through it one by one.
        fast_parameters: names of its parameters that LoRA+ trains at a higher learning rate: those that start at zero behind another one.
        acts_as_one: whether it does the same at every module that shares a weight, so that it can be merged into a tied weight.
        recomputes: whether it computes the output anew from the target's own tensors, so that no delta may replace them.
        reads_weight: whether its work depends on the target's own weights, which a merge of another delta changes.
        starts: names of its tensors that start with a value computed from the target, with which they change nothing (`at_start`).
    """

    keeps_length: ClassVar[bool] = True
    acts_as_one: ClassVar[bool] = False
    recomputes: ClassVar[bool] = False
    fast_parameters: ClassVar[frozenset[str]] = frozenset()
    reads_weight: bool = False
    starts: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        # An insertion is not called as a module, so an accelerate hook would offload its tensors and never load them back.
        if name == "_hf_hook" and getattr(value, "offload", False):
            msg = "accelerate is about to offload a delta, which would then not act. Offload the backbone before deltas are added."
            raise ConfigError(msg)
        if type(value) in _PLAIN and not self._is_member(name):
            object.__setattr__(self, name, value)  # nn.Module's own asks at length whether it is a tensor or a module
        else:
            super().__setattr__(name, value)

    def at_start(self, target: nn.Module) -> bool:
        """Return whether the tensors in `starts` have the value that they start with."""
        return not self.starts

    def _is_member(self, name: str) -> bool:
        """Return whether a name is that of a parameter, buffer or module, which assigning None takes away."""
        own = self.__dict__
        return name in own.get("_parameters", ()) or name in own.get("_buffers", ()) or name in own.get("_modules", ())

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Change the arguments of the target."""
        return args, kwargs

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the output of the target.

        Args:
            target: the module that holds the insertion.
            args: its positional arguments, after every `before`.
            kwargs: its keyword arguments, after every `before`.
            output: its output, after every earlier `after`.
        """
        return output

    def attend(self, target: nn.Module, call: Any) -> Any:
        """Change the inputs of an attention.

        Args:
            target: the attention module.
            call: an `engine.attention.AttentionCall`.
        """
        return call

    def substitute(self, target: nn.Module, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the target's forward reads instead of parameters of the target.

        Args:
            target: the module that holds the insertion.
            values: the same of earlier insertions, by name of the parameter.
        """
        return values

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the target's parameters with the insertion's work merged into them.

        Returns:
            Parameter name to new value, in float32 or wider.

        Raises:
            MergeError: no parameter values have the same effect.
        """
        raise MergeError(f"the effect of a {type(self).__name__} cannot be written into a layer's weights")

    def check_strength(self, strength: float) -> None:
        """Refuse a strength other than 1 for work that cannot be done by a share.

        Raises:
            ConfigError: the message says why.
        """
        if strength != 1 and (acts_in(self, "attend") or acts_in(self, "substitute") or not self.keeps_length):
            msg = (
                f"A {type(self).__name__} has no strength: a share of what it adds, such as positions, keys or parameters, is not defined. "
                "Train another delta, or detach this one."
            )
            raise ConfigError(msg)

    def set_strength(self, strength: float) -> None:
        """Multiply the change that the insertion makes; at 1 it is the insertion as it was built."""
        for method, share in _SHARES.items():
            self.__dict__.pop(method, None)
            if strength != 1 and acts_in(self, method):
                # A tensor: compiled code takes another one without being compiled again.
                value = torch.tensor(float(strength), dtype=torch.float64)
                self.__dict__[method] = partial(share, self, value)

    @classmethod
    def after_rows(
        cls,
        members: tuple[Self, ...],
        target: nn.Module,
        args: Args,
        kwargs: Kwargs,
        output: Any,
    ) -> Any:
        """Run the `after` of several insertions of this very class at once, each on its own rows, where that is faster.

        It is not used for a subclass, whose `after` may do something else.

        Args:
            members: for each row of the batch the insertion that acts on it, all at `target`; one may act on several rows.

        Returns:
            The changed output, or NotImplemented if the members have to run one at a time.
        """
        return NotImplemented


def _share_before(
    insertion: Insertion, strength: Tensor, target: nn.Module, args: Args, kwargs: Kwargs
) -> tuple[Args, Kwargs]:
    """Change the first argument of the target by a share of what the insertion would change."""
    new_args, new_kwargs = type(insertion).before(insertion, target, args, kwargs)
    old, new = first_input(args, kwargs), first_input(new_args, new_kwargs)
    return with_first_input(new_args, new_kwargs, old if new is old else old + strength * (new - old))


def _share_after(
    insertion: Insertion, strength: Tensor, target: nn.Module, args: Args, kwargs: Kwargs, output: Any
) -> Any:
    """Change the output of the target by a share of what the insertion would change."""
    old: list[Tensor] = []
    map_hidden(output, lambda hidden: old.append(hidden) or hidden)  # type: ignore[func-returns-value]
    changed = type(insertion).after(insertion, target, args, kwargs, output)
    return map_hidden(changed, lambda new: new if new is old[0] else old[0] + strength * (new - old[0]))


def _share_merged(insertion: Insertion, strength: Tensor, target: nn.Module) -> Mapping[str, Tensor]:
    """Return the target's parameters with a share of the insertion's change merged into them."""
    values = type(insertion).merged(insertion, target)
    old = {key: cast("Tensor", getattr(target, key)) for key in values}
    if odd := next((key for key in old if old[key].shape != values[key].shape or not old[key].is_floating_point()), ""):
        raise MergeError(f"its {odd} is quantised, and the delta has a strength other than 1")
    old = {key: tensor.to(values[key]) for key, tensor in old.items()}
    return {key: old[key] + strength.to(value.device) * (value - old[key]) for key, value in values.items()}


_SHARES: Final[Mapping[str, Callable[..., Any]]] = {
    "before": _share_before,
    "after": _share_after,
    "merged": _share_merged,
}


def acts_in(insertion: Insertion, method: str) -> bool:
    """Return whether an insertion overrides one of the base class's methods."""
    return getattr(type(insertion), method) is not getattr(Insertion, method)


def stackable(insertion: Insertion) -> Hashable:
    """Return a key that is equal for insertions that `after_rows` can process at once."""
    kind = type(insertion)
    at_once = "after_rows" in vars(kind) and "after" not in insertion.__dict__  # a strength of its own
    return cast("Hashable", kind) if at_once else id(insertion)


def first_input(args: Args, kwargs: Kwargs) -> Any:
    """Return the first argument of a call, positional or by name: for a layer, its input tensor."""
    if args:
        return args[0]
    return kwargs["hidden_states"] if "hidden_states" in kwargs else next(iter(kwargs.values()))


def with_first_input(args: Args, kwargs: Kwargs, value: Any) -> tuple[Args, Kwargs]:
    """Return the arguments of a call with another first argument: the one that `first_input` returns."""
    if args:
        return (value, *args[1:]), kwargs
    return (), {**kwargs, "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs)): value}


def map_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to the hidden state of an output: a tensor, or the first element of a tuple or ModelOutput."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        changed = (change(output[0]), *output[1:])
        return type(output)(*changed) if hasattr(output, "_fields") else changed
    # transformers' ModelOutput is an ordered dict
    if isinstance(output, dict) and output and isinstance(output[key := next(iter(output))], Tensor):
        output[key] = change(output[key])
        return output
    msg = f"The target returns a {type(output).__name__}; expected a tensor, a tuple or a ModelOutput that begins with one."
    raise TargetError(msg)
