"""Which of query, key and value a layer really feeds: seen by disturbing what it returns, not by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from deltahub.engine.structure.layouts import Part
from deltahub.engine.structure.names import StructureMap

ROLES = ("q", "k", "v")
FirstCalls = dict[int, list[Tensor]]  # id of an attention module to its query, key and value, of its first call


def roles_of(model: nn.Module) -> Iterator[tuple[str, str, Part | None]]:
    """Name of a layer, ``q``, ``k`` or ``v``, and the part of the layer that is said to be it."""
    structure = StructureMap.of(model)
    for name, module in model.named_modules():
        if name and not list(module.children()):
            for common, part in structure.variants(name):
                elements = common.split(".")
                if (
                    len(elements) > 1
                    and elements[-2] in ("attn@", "crossattn@")
                    and elements[-1].removesuffix("@") in ROLES
                ):
                    yield name, elements[-1].removesuffix("@"), part


@contextmanager
def disturbed(layer: nn.Module, part: Part | None, position: int | None = None) -> Iterator[None]:
    """Let a layer return something else in the rows of a part, at every position or at one."""

    def disturb(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(5)
        noise = torch.randn(output.shape[-1], generator=draw).expand_as(output).clone()
        if position is not None:
            noise[..., :position, :] = 0
            noise[..., position + 1 :, :] = 0
        if part is not None:
            noise = part.written(torch.zeros_like(noise), part.read(noise))
        return output + noise.to(output.dtype)

    handle = layer.register_forward_hook(disturb)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watched_attention(model: nn.Module) -> Iterator[FirstCalls]:
    """The query, key and value that reach transformers' attention function, by attention module."""
    calls: FirstCalls = {}

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.setdefault(id(module), [t.detach().clone() for t in (query, key, value)])
        return seen_before(module, query, key, value, *args, **kwargs)

    seen_before: Callable[..., Any] = eager_attention_forward

    def get_interface(name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        nonlocal seen_before
        seen_before = default
        return attend

    ALL_ATTENTION_FUNCTIONS.get_interface = get_interface
    try:
        yield calls
    finally:
        del ALL_ATTENTION_FUNCTIONS.get_interface  # the one of its class is there again


def fed_by(model: nn.Module, run: Callable[[], Any], name: str, part: Part | None) -> str | None:
    """Which of q, k and v of the attention around a layer change when the layer does: ``"q"``, ``"kv"``, ``""``...

    Returns None where that attention does not go through transformers' attention function.
    """
    with watched_attention(model) as plain:
        run()
    with watched_attention(model) as changed, disturbed(model.get_submodule(name), part):
        run()
    while name:
        name = name.rpartition(".")[0]
        if (key := id(model.get_submodule(name))) in plain:
            pairs = zip(ROLES, plain[key], changed[key], strict=True)
            return "".join(role for role, before, after in pairs if not torch.equal(before, after))
    return None


def behaves_as(attention: nn.Module, run: Callable[[int], Any], layer: nn.Module, part: Part | None) -> str:
    """The role of a layer by what it does to what its attention returns, for an attention whose inside is not seen.

    A query acts on its own position only, a key and a value on others as well; with one token alone a key does nothing.

    Args:
        run: runs the model on so many tokens.
    """
    alone = _change(attention, run, 1, layer, part, 0).any()
    changes = _change(attention, run, 4, layer, part, 1)
    elsewhere = changes[:, [i for i in range(changes.shape[1]) if i != 1]].any()
    if not elsewhere:
        return "q" if changes.any() and not alone else ""
    return "v" if alone else "k"


def _change(
    attention: nn.Module, run: Callable[[int], Any], length: int, layer: nn.Module, part: Part | None, position: int
) -> Tensor:
    """Where an attention's output changes, ``(batch, length)``."""
    outputs = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, (tuple, list)) else output)

    handle = attention.register_forward_hook(keep)
    try:
        run(length)
        with disturbed(layer, part, position):
            run(length)
    finally:
        handle.remove()
    return (outputs[0] - outputs[-1]).abs().amax(-1) > 1e-5 * outputs[0].abs().max()
