"""The layers of a backbone by the names that files of diffusers, kohya and LyCORIS have for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from torch import Tensor, nn

from deltahub.errors import CheckpointError
from deltahub.formats.diffusers.keys import Key
from deltahub.formats.diffusers.original_names import original_names

# The layers of an attention by their names in diffusers until 0.21, and in a U-Net and a text encoder.
_IN_ATTENTION: Final = {
    "to_q": ("to_q", "q_proj"),
    "to_k": ("to_k", "k_proj"),
    "to_v": ("to_v", "v_proj"),
    "to_out": ("to_out.0", "out_proj"),
}
_TEXT_MODEL: Final = "text_model."  # in CLIPTextModel until transformers 5


class Layers:
    """The layers of a backbone, found by name.

    Args:
        modules: the modules of the backbone by name.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self._names = {n for n, module in modules.items() if n and isinstance(getattr(module, "weight", None), Tensor)}
        self._aliases = {alias: name for name, alias in original_names(modules).items() if name in self._names}
        if "text_model" in modules:
            self._aliases |= {n.removeprefix(_TEXT_MODEL): n for n in self._names if n.startswith(_TEXT_MODEL)}
        else:
            self._aliases |= {f"{_TEXT_MODEL}{name}": name for name in self._names}
        self._flat: dict[str, set[str]] = {}
        self._flat_aliases: dict[str, set[str]] = {}
        for name in self._names:
            self._flat.setdefault(name.replace(".", "_"), set()).add(name)
        for alias, name in self._aliases.items():
            self._flat_aliases.setdefault(alias.replace(".", "_"), set()).add(name)

    def find(self, key: Key) -> str | None:
        """Return the name in the backbone of the layer of a key; None if it has no such layer.

        Raises:
            CheckpointError: several layers may be meant.
        """
        found = self._flat.get(key.layer) or self._flat_aliases.get(key.layer, set()) if key.flat else self._dotted(key)
        if len(found) > 1:
            msg = (
                f"{key.layer} in the file may mean {' or '.join(sorted(found))} of this backbone. Convert the file to diffusers' names, "
                "which keep the dots."
            )
            raise CheckpointError(msg)
        return next(iter(found), None)

    def _dotted(self, key: Key) -> set[str]:
        found = set()
        for name in _spellings(key):
            if name in self._names:
                found.add(name)
            elif name in self._aliases:
                found.add(self._aliases[name])
        return found

    def holds(self, name: str) -> bool:
        """Return whether the backbone has a layer of exactly this name."""
        return name in self._names


def _spellings(key: Key) -> Iterator[str]:
    """Yield the names that a layer of a key may have in a backbone."""
    name = key.layer.replace(".processor.", ".")
    if not key.attention:
        yield name
        return
    parent, dot, last = name.rpartition(".")
    for spelling in _IN_ATTENTION.get(last, (last,)):
        yield f"{parent}{dot}{spelling}"
