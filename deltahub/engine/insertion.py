"""What one delta does at one module: the base class of every method's working part, and what it needs to do it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, Self, cast

from torch import Tensor, nn

from deltahub.errors import ConfigError, MergeError, TargetError

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class Insertion(nn.Module):
    """What one delta does at one target. Override what it does: `before`, `after` or `attend`.

    Attributes:
        keeps_length: whether rows of a batch can pass through it one by one: what goes in and out keeps its shape.
        reads_weight: whether what it does depends on the target's own weights, which a merge of another delta changes.
    """

    keeps_length: ClassVar[bool] = True
    reads_weight: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        # An insertion is not called as a module, so a hook of accelerate would take its tensors away and never bring them back.
        if name == "_hf_hook" and getattr(value, "offload", False):
            msg = "accelerate is about to offload a delta, which would then not act. Offload the backbone before deltas are added."
            raise ConfigError(msg)
        super().__setattr__(name, value)

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Change what the target is called with."""
        return args, kwargs

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change what the target returns.

        Args:
            target: the module that holds the insertion.
            args: what it was called with, after every `before`.
            kwargs: the same by name.
            output: what it returned, after every earlier `after`.
        """
        return output

    def attend(self, target: nn.Module, call: Any) -> Any:
        """Change what an attention attends to.

        Args:
            target: the attention module.
            call: an `engine.attention.AttentionCall`.
        """
        return call

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """What the target's own parameters would be if they did this insertion's work.

        Returns:
            Parameter name to its new value, in float32 or wider.

        Raises:
            MergeError: no values of them would.
        """
        raise MergeError(f"what a {type(self).__name__} does cannot be written into a layer's weights")

    @classmethod
    def after_rows(
        cls,
        members: tuple[Self, ...],
        target: nn.Module,
        args: Args,
        kwargs: Kwargs,
        output: Any,
    ) -> Any:
        """Do the `after` of several insertions of this very class at once, each for rows of its own, where that is quicker.

        A derived class does not inherit it: its `after` may do something else.

        Args:
            members: for each row of the batch what acts on it, all at `target`; one may act on several.

        Returns:
            The changed output, or NotImplemented where the rows have to go one member at a time.
        """
        return NotImplemented


def overrides(insertion: Insertion, method: str) -> bool:
    """Whether an insertion does anything in one of its methods."""
    return getattr(type(insertion), method) is not getattr(Insertion, method)


def stackable(insertion: Insertion) -> Hashable:
    """Equal for insertions that `after_rows` may take at once."""
    kind = type(insertion)
    return cast("Hashable", kind) if "after_rows" in vars(kind) else id(insertion)


def first_input(args: Args, kwargs: Kwargs) -> Any:
    """The first argument of a call, by position or by name: for a layer, its input tensor."""
    if args:
        return args[0]
    return kwargs["hidden_states"] if "hidden_states" in kwargs else next(iter(kwargs.values()))


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
