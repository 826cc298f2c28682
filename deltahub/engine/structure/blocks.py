"""The numbered blocks of a backbone, so that a delta can be limited to some of them.

    model.layers.3.self_attn.q_proj      is in block 3: the first number in its name

As in PEFT, blocks with one number in several stacks (the encoder and the decoder of T5) are all meant. A choice is expressed as addresses to
exclude, which every delta type and every exporter understands.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from torch import nn

from deltahub.checkpoint.address import REGEX_MARK
from deltahub.engine.modules import modules_by_name
from deltahub.engine.site import CHILD
from deltahub.errors import ConfigError

_LONGEST: Final = 900  # characters of an expression; `deltahub.text.patterns` has a limit


def block_of(name: str) -> tuple[str, int] | None:
    """Return the list of blocks that a module is in and the number of its block there, or None.

    Args:
        name: its real name.
    """
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    return None if place is None else (".".join(parts[:place]), int(parts[place]))


def outside_blocks(backbone: nn.Module, numbers: Sequence[int]) -> list[str]:
    """Return addresses of everything outside the blocks with the given numbers.

    Raises:
        ConfigError: there is no number, or no block of the backbone has one of them.
    """
    modules = modules_by_name(backbone)
    lists = _blocks(modules)
    every = sorted({number for own in lists.values() for number in own})
    if not every:
        msg = f"layers_to_transform={list(numbers)} chooses among numbered blocks, and this {type(backbone).__name__} has none. Leave it out."
        raise ConfigError(msg)
    if not numbers:
        msg = "layers_to_transform is empty. List the numbers of blocks, or leave it out for all of them."
        raise ConfigError(msg)
    if wrong := [number for number in numbers if number not in every]:
        msg = f"layers_to_transform has {wrong[0]}, and the blocks of this {type(backbone).__name__} are numbered from {every[0]} to {every[-1]}."
        raise ConfigError(msg)
    inside = {_join(path, number) for path, own in lists.items() for number in own if number in numbers}
    around = {_join(*name.split(".")[:end]) for name in inside for end in range(name.count(".") + 1)}
    addresses: list[str] = []
    for path, own in lists.items():
        if rest := sorted(own - {*numbers}):
            addresses += _expressions(re.escape(f"{path}." if path else ""), map(str, rest))
    others = [
        name
        for name in modules
        if name and block_of(name) is None and name not in around and name.rpartition(".")[0] in {"", *around}
    ]
    return [*addresses, *_expressions("", map(re.escape, others))]


def check_blocks(numbers: Sequence[int] | None, targets: Collection[str]) -> None:
    """Check that each chosen block has a module with the delta.

    Args:
        numbers: the chosen blocks, or None for all.
        targets: the real names of the modules with the delta.

    Raises:
        ConfigError: a block has none.
    """
    hit = {place[1] for place in map(block_of, targets) if place is not None}
    if wrong := [number for number in numbers or () if number not in hit]:
        msg = f"layers_to_transform has {wrong[0]}, but modified_modules means no module in block {wrong[0]}. Leave it out, or address others."
        raise ConfigError(msg)


def _blocks(modules: Mapping[str, nn.Module]) -> dict[str, set[int]]:
    """Return the numbers of the blocks in each outermost list: its numbered elements that contain modules."""
    lists: dict[str, set[int]] = {}
    for name, module in modules.items():
        place = block_of(name)
        if place is not None and _join(*place) == name and module._modules.keys() - {CHILD}:
            lists.setdefault(place[0], set()).add(place[1])
    return lists


def _join(*parts: str | int) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _expressions(head: str, names: Iterable[str]) -> Iterator[str]:
    """Yield regular expressions that match whole names, each of a length that can be saved."""
    batch: list[str] = []
    for name in names:
        if batch and len(head) + sum(map(len, batch)) + len(batch) + len(name) > _LONGEST:
            yield f"{REGEX_MARK}^{head}(?:{'|'.join(batch)})$"
            batch = []
        batch.append(name)
    if batch:
        yield f"{REGEX_MARK}^{head}(?:{'|'.join(batch)})$"
