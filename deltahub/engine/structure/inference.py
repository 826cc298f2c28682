"""The structure of an architecture without an explicit map, inferred from its modules.

    block          the element of a list of modules around an attention or a feed-forward
    attention      a module with one layer each for query and key or value, by their usual names
    feed-forward   the layers of a block that widen its hidden state and narrow it again, by their usual names
    layer norms    those of a block, and those after the last block

A wrong name is worse than none: a layer whose role is not certain keeps its real name, and the error for an address that
matches nothing lists the layers of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from deltahub.engine.structure.layouts import Part, fused_parts, gate_parts
from deltahub.engine.structure.lexicon import EXPERTS, FUSED
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.recognition import Attention, Forward, attention_at, forwards_in
from deltahub.engine.structure.tree import Tree, ancestors, is_norm


@dataclass
class Inferred:
    """Inferred common names, each in "@" notation.

    Attributes:
        names: real name to common name.
        parts: real name of a fused layer to its parts.
        groups: real name to the common name of its group.
        aliases: real name to its further common names.
        experts: real names of mixtures of experts whose matrices are not modules; their aliases name these.
        blocks: real names of the blocks.
        widths: real name of an attention, a norm or a mixture of experts to the size of the hidden state it returns.
        widths_in: the same for the hidden state it receives.
    """

    names: dict[str, str] = field(default_factory=dict)
    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    experts: set[str] = field(default_factory=set)
    blocks: list[str] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    widths_in: dict[str, int] = field(default_factory=dict)

    def common_name(self, name: str) -> str:
        """Return the common name of a module: that of the nearest ancestor with one, and the rest of the real name."""
        for above in (name, *ancestors(name)):
            if above in self.names:
                return self.names[above] + name[len(above) :]
        return name


def infer(modules: Mapping[str, nn.Module]) -> Inferred:
    """Infer the certain names among some modules of a backbone.

    Args:
        modules: real name to module, parents before children.
    """
    tree, inferred = Tree.of(modules), Inferred()
    by_block: dict[str, list[Attention]] = {}
    for name in modules:
        if (attention := attention_at(tree, name)) is not None:
            by_block.setdefault(attention.block, []).append(attention)
    forwards = {block: list(_forwards(tree, block, inside)) for block, inside in by_block.items()}
    for name in _blocks_without_attention(tree, set(by_block)):
        for forward in forwards_in(tree, name, set(), None):
            if forward.layers:
                block = _element_around(forward.holder)
                by_block.setdefault(block, [])
                forwards.setdefault(block, []).append(forward)
    causal = _causal(tree, by_block)
    for block in modules:
        if block in by_block:
            base = _name_path(tree, inferred, block, causal.get(block.rpartition(".")[0], set()))
            _name_block(tree, inferred, base, block, by_block[block], forwards[block])
    _name_embeddings(tree, inferred)
    return inferred


def _forwards(tree: Tree, block: str, attentions: Sequence[Attention]) -> Iterator[Forward]:
    width = next((a.width for a in attentions if not a.cross), None) or next((a.width for a in attentions), None)
    return forwards_in(tree, block, {a.whole for a in attentions}, width)


def _blocks_without_attention(tree: Tree, known_blocks: set[str]) -> Iterator[str]:
    """Yield the outermost elements of lists that are neither in nor around the known blocks."""
    around = {above for block in known_blocks for above in ancestors(block)}
    taken = set(known_blocks)
    for name in tree.modules:
        is_element = name.rpartition(".")[2].isdigit()
        if is_element and name not in around and not taken.intersection((name, *ancestors(name))):
            taken.add(name)
            yield name


def _element_around(holder: str) -> str:
    """Return the innermost list element that contains or is a feed-forward, other than one of several experts."""
    elements = [name for name in (holder, *ancestors(holder)) if name.rpartition(".")[2].isdigit()]
    return next((n for n in elements if not EXPERTS.search(n.split(".")[-2] if "." in n else "")), elements[-1])


# ----- names -----


def _name_block(
    tree: Tree, inferred: Inferred, base: str, block: str, attentions: Sequence[Attention], forwards: Sequence[Forward]
) -> None:
    inferred.blocks.append(block)
    width = next((a.width for a in attentions if a.width), None)
    for _, child in tree.children(block):
        if is_norm(tree.modules[child]):
            inferred.names[child] = f"{base}.layer_norm{MARK}"
            if width is not None:
                inferred.widths[child] = width
    for attention in attentions:
        _name_attention(tree, inferred, base, attention)
        if attention.width is not None:
            inferred.widths[attention.whole] = attention.width
        if attention.width_in is not None:
            inferred.widths_in[attention.whole] = attention.width_in
    for forward in forwards:
        if forward.experts and width is not None:
            inferred.widths[forward.holder] = inferred.widths_in[forward.holder] = width
        _name_forward(tree, inferred, base, block, forward)


def _causal(tree: Tree, by_block: Mapping[str, Sequence[Attention]]) -> dict[str, set[bool]]:
    """Return for each list of blocks the values of `is_causal` of its attentions."""
    flags_by_list: dict[str, set[bool]] = {}
    for block, attentions in by_block.items():
        flags = (tree.modules[attention.core].__dict__.get("is_causal") for attention in attentions)
        flags_by_list.setdefault(block.rpartition(".")[0], set()).update(t for t in flags if isinstance(t, bool))
    return flags_by_list


def _name_path(tree: Tree, inferred: Inferred, block: str, causal: set[bool]) -> str:
    """Name a block, the list that contains it, and the encoder or decoder around it; return the block's common name."""
    container, _, number = block.rpartition(".")
    path = container.rpartition(".")[0]
    stack_names = ("encoder", "decoder")
    for above in (path, *ancestors(path)):
        if above.rpartition(".")[2] in stack_names:
            inferred.names.setdefault(above, _marked_path(above, stack_names))
    stem = _marked_path(path, stack_names) if path else ""
    if MARK not in stem and len(causal) == 1:
        stem = ".".join(filter(None, (stem, f"decoder{MARK}" if True in causal else f"encoder{MARK}")))
    base = ".".join(filter(None, (stem, f"block{MARK}"))) if container else f"block{MARK}"
    if container and container not in inferred.names:
        inferred.names[container] = base
        _name_last_norms(tree, inferred, path, container, stem)
    inferred.names[block] = f"{base}.{number}"
    return inferred.names[block]


def _marked_path(path: str, stack_names: Sequence[str]) -> str:
    return ".".join(f"{element}{MARK}" if element in stack_names else element for element in path.split("."))


def _name_last_norms(tree: Tree, inferred: Inferred, path: str, container: str, stem: str) -> None:
    behind = False
    for _, child in tree.children(path) if path in tree.modules else ():
        if behind and is_norm(tree.modules[child]):
            inferred.names.setdefault(child, ".".join(filter(None, (stem, f"layer_norm{MARK}"))))
        behind = behind or child == container


def _name_attention(tree: Tree, inferred: Inferred, base: str, attention: Attention) -> None:
    common_name = f"{base}.{'crossattn' if attention.cross else 'attn'}{MARK}"
    if attention.whole == attention.block:
        inside = tree.inside.get(attention.block, ())
        if set(inside) <= set(attention.roles.values()):
            inferred.aliases[attention.block] = (common_name,)
    else:
        inferred.names[attention.whole] = common_name
        for name in tree.under(attention.whole):
            if is_norm(tree.modules[name]) and not name.startswith(f"{attention.core}."):
                inferred.names[name] = f"{common_name}.layer_norm{MARK}"
    for role, layer in attention.roles.items():
        label = role
        if role in FUSED:
            parts = fused_parts(tree.modules[attention.core], role, tree.linears[layer][1])
            label = ",".join(part.label for part in parts)
            if sum(part.stop - part.start for part in parts) != (parts[0].of if parts else 0) or not parts:
                label = "kv" if "q" in attention.roles else "qkv"  # the layer has more than its known parts, or none
            if parts:
                inferred.parts[layer] = parts
        inferred.names[layer] = f"{common_name}.{label}{MARK}"


def _name_forward(tree: Tree, inferred: Inferred, base: str, block: str, forward: Forward) -> None:
    common_name = f"{base}.ff{MARK}"
    if forward.holder != block:
        inferred.names[forward.holder] = common_name
    if forward.experts:
        inferred.experts.add(forward.holder)
        inferred.aliases[forward.holder] = (f"{common_name}.w1{MARK}", f"{common_name}.w2{MARK}")
    for role, layer in forward.layers.items():
        label = role
        if "," in role:
            parts = gate_parts(tree.modules[forward.holder])
            label = ",".join(part.label for part in parts) or "gate_w1"
            if parts:
                inferred.parts[layer] = parts
        inferred.names[layer] = f"{common_name}.{label}{MARK}"
        if forward.holder == block:
            _name_apart(tree, inferred, block, layer, common_name)


def _name_apart(tree: Tree, inferred: Inferred, block: str, layer: str, common_name: str) -> None:
    """Name a feed-forward without its own module: its layers form a group, and modules around only them get its name."""
    around = [name for name in ancestors(layer) if name.startswith(f"{block}.")]
    if not around:
        inferred.groups[layer] = common_name
    for name in around:
        inferred.names[name] = common_name
        for inner in tree.under(name):
            if is_norm(tree.modules[inner]):
                inferred.names[inner] = f"{common_name}.layer_norm{MARK}"


def _name_embeddings(tree: Tree, inferred: Inferred) -> None:
    root = tree.modules.get("")
    try:
        embeddings = root.get_input_embeddings()  # type: ignore[union-attr, operator]
    except Exception:  # noqa: BLE001  # a model without embeddings can raise anything
        return
    name = next((name for name, module in tree.modules.items() if module is embeddings), "")
    if name and isinstance(embeddings, nn.Embedding):
        inferred.names.setdefault(name, f"embeddings{MARK}")


def describe_linear_layers(modules: Mapping[str, nn.Module], guess: Inferred) -> str:
    """Describe the linear layers of a backbone's first block, for an address that matched nothing."""
    tree = Tree.of(modules)
    lists = [name for name in tree.inside if name.rpartition(".")[2].isdigit()]
    block = next(iter(guess.blocks), None) or next(iter(lists), None)
    names = tree.inside.get(block, []) if block else list(tree.linears)
    if not names:
        return "No linear layer was found in it."
    shown = [
        f"{name[len(block) + 1 :] if block else name} ({tree.linears[name][0]} to {tree.linears[name][1]})"
        for name in names[:12]
    ]
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"The linear layers of {block or 'the backbone'} are {', '.join(shown)}{more}."
