"""The recognition of attentions and feed-forwards, by the names and the widths of their layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from deltahub.engine.structure.lexicon import (
    CROSS,
    EXPERTS,
    FEED_FORWARD,
    FORWARDS,
    FUSED,
    GATE_AND_UP,
    NOT_ATTENTION,
    ROLES,
)
from deltahub.engine.structure.tree import (
    Tree,
    ancestors,
    calls_attention_interface,
    linear_width,
    reads_weights_itself,
)


@dataclass(frozen=True)
class Attention:
    """A recognised attention.

    Attributes:
        core: the module with the layers of query and key or value.
        whole: the core, or the module around it that has the output projection too.
        block: the block that contains it.
        roles: ``q``, ``k``, ``v``, ``proj`` or the key of a fused layer, to the name of the layer.
        width: size of the hidden state it returns, if known.
        width_in: size of the hidden state it receives, if known.
        cross: whether its keys come from elsewhere.
    """

    core: str
    whole: str
    block: str
    roles: Mapping[str, str]
    width: int | None
    width_in: int | None
    cross: bool


def attention_at(tree: Tree, core: str) -> Attention | None:
    """Return the attention with the children of a module as its layers, if the module is one inside a block, else None."""
    module = tree.modules[core]
    if not module._modules or linear_width(module) is not None or NOT_ATTENTION.search(core.rpartition(".")[2]):
        return None
    roles = _roles(tree, core)
    sure = (
        isinstance(module, nn.MultiheadAttention) or calls_attention_interface(module) or reads_weights_itself(module)
    )
    if not roles and not sure:
        return None
    block = _block_around(tree, core)
    if block is None:
        return None
    whole = core
    if (
        roles
        and "proj" not in roles
        and core != block
        and (projection := _projection_outside(tree, core, block, roles))
    ):
        whole, roles["proj"] = projection
    first = next((roles[key] for key in ("q", *FUSED) if key in roles), None)
    width = tree.linears[roles["proj"]][1] if "proj" in roles else tree.linears[first][0] if first else None
    latent = first is not None and first.endswith("_b_proj")  # another layer has narrowed its input
    width_in = width if latent or first is None else tree.linears[first][0]
    return Attention(core, whole, block, roles, width, width_in, _is_cross(tree, core, block, roles))


def _roles(tree: Tree, core: str) -> dict[str, str]:
    """Map roles to layers; empty if the layers are not those of an attention, or are never called themselves."""
    if reads_weights_itself(tree.modules[core]):
        return {}
    layers_by_role: dict[str, list[str]] = {}
    for key, name in tree.children(core):
        role = next((role for role, words in ROLES.items() if key in words), key if key in FUSED else None)
        layer = tree.sole_linear(name) if role else None
        if role and layer:
            layers_by_role.setdefault(role, []).append(layer)
    roles = {role: layers[0] for role, layers in layers_by_role.items() if len(layers) == 1}
    fused = [key for key in roles if key in FUSED]
    if "q" in roles and ("k" in roles or "v" in roles or fused):
        return roles
    kind = type(tree.modules[core])
    is_attention = calls_attention_interface(tree.modules[core]) or "ttention" in kind.__name__
    return roles if len(fused) == 1 and is_attention and not {"q", "k", "v"} & roles.keys() else {}


def _projection_outside(tree: Tree, core: str, block: str, roles: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the module around a core that has its output projection, as in BERT, and the name of the projection."""
    parent = core.rpartition(".")[0]
    outside = [name for name in tree.inside.get(parent, ()) if not name.startswith(f"{core}.")]
    if parent == block or len(outside) != 1:
        return None
    value = roles.get("v")
    fits = value is None or tree.linears[value][1] == tree.linears[outside[0]][0]
    return (parent, outside[0]) if fits else None


def _is_cross(tree: Tree, core: str, block: str, roles: Mapping[str, str]) -> bool:
    module = tree.modules[core]
    if module.__dict__.get("is_cross_attention") is True or CROSS.search(core[len(block) :]):
        return True
    if CROSS.search(type(module).__name__):
        return True
    return "q" in roles and "k" in roles and tree.linears[roles["q"]][0] != tree.linears[roles["k"]][0]


def _block_around(tree: Tree, core: str) -> str | None:
    """Return the nearest list element that holds more than the attention, else the nearest list element."""
    elements = [name for name in (core, *ancestors(core)) if name.rpartition(".")[2].isdigit()]
    return next((name for name in elements if _holds_more(tree, name, core)), elements[0] if elements else None)


def _holds_more(tree: Tree, element: str, core: str) -> bool:
    """Return whether a list element has matrices besides those of an attention and its output projection."""
    parent = core.rpartition(".")[0]
    skip = core if element in {core, parent} else parent
    return any(
        tree.has_matrix(name)
        for name in tree.under(element)
        if name != skip and not name.startswith(f"{skip}.") and not name.startswith(f"{core}.")
    )


@dataclass(frozen=True)
class Forward:
    """A recognised feed-forward.

    Attributes:
        holder: the module with its layers; the block itself if there is none.
        layers: ``w1``, ``w2``, ``gate`` or ``gate,w1`` (one layer for both) to the name of the layer.
        experts: whether it is a mixture of experts whose matrices are not linear layers.
    """

    holder: str
    layers: Mapping[str, str]
    experts: bool = False


def forwards_in(tree: Tree, block: str, apart: set[str], width: int | None) -> Iterator[Forward]:
    """Yield the feed-forwards of a block.

    Args:
        apart: modules to skip: the attentions of the block.
        width: size of the hidden state, if known.
    """
    pending = [block]
    while pending:
        holder = pending.pop(0)
        if holder in apart and holder != block:
            continue
        forward = _forward_at(tree, holder, holder == block, width)
        if forward is not None:
            yield forward
            if holder != block:
                continue
        taken = (
            set()
            if forward is None
            else {above for name in forward.layers.values() for above in (name, *ancestors(name))}
        )
        pending += [name for _, name in tree.children(holder) if name not in taken]


def _forward_at(tree: Tree, holder: str, is_block: bool, width: int | None) -> Forward | None:
    last = next((part for part in reversed(holder.split(".")) if not part.isdigit()), "")
    kind = type(tree.modules[holder]).__name__
    named = not is_block and bool(FEED_FORWARD.search(last) or kind.endswith(("MLP", "Mlp", "FeedForward", "FFN")))
    if named and any(EXPERTS.search(key) for key, _ in tree.children(holder)):
        return Forward(holder, {}, experts=True)
    if not named and not is_block:
        return None
    for first, second, gate in FORWARDS:
        layers = {"w1": f"{holder}.{first}", "w2": f"{holder}.{second}"} | (
            {"gate": f"{holder}.{gate}"} if gate else {}
        )
        if _fits(tree, layers, width):
            return Forward(holder, layers)
    for both, second in GATE_AND_UP:
        layers = {"gate,w1": f"{holder}.{both}", "w2": f"{holder}.{second}"}
        if _fits(tree, layers, width):
            return Forward(holder, layers)
    return Forward(holder, {}) if named and holder in tree.inside else None


def _fits(tree: Tree, layers: Mapping[str, str], width: int | None) -> bool:
    """Return whether layers exist, and widen the hidden state and narrow it again."""
    shapes = {role: tree.linears.get(name) for role, name in layers.items()}
    second = shapes.pop("w2")
    if second is None or (width is not None and second[1] != width):
        return False
    wide = {role: second[0] * (2 if "," in role else 1) for role in shapes}
    return all(shape == (second[1], wide[role]) for role, shape in shapes.items())
