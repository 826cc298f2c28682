"""The names in the U-Net of Stable Diffusion as its authors published it, in which kohya's scripts write files for SDXL.

down_blocks.1.attentions.0    input_blocks.4.1      blocks count through, and each downsampler counts as one
mid_block.resnets.1           middle_block.2
up_blocks.0.upsamplers.0      output_blocks.2.2     an upsampler follows the other layers of the last block
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final

_OUTSIDE: Final = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
_IN_RESNETS: Final = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_MIDDLE: Final = {
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def original_names(modules: Collection[str]) -> dict[str, str]:
    """Return the original names of the layers of a U-Net of diffusers, by name in diffusers; empty for any other model."""
    if "down_blocks.0.resnets.0" not in modules:
        return {}
    blocks = {**_MIDDLE, **dict(_down(modules)), **dict(_up(modules))}
    names = {name: original for name, original in _OUTSIDE.items() if name in modules}
    for name in modules:
        block = re.match(r"(?:(?:down|up)_blocks\.\d+|mid_block)\.[a-z]+\.\d+(?=\.)", name)
        if block and block[0] in blocks:
            layer = name[block.end() + 1 :]
            if ".resnets." in block[0]:
                layer = _IN_RESNETS.get(layer, layer)
            elif ".downsamplers." in block[0]:
                layer = ""  # its one convolution
            names[name] = f"{blocks[block[0]]}.{layer}".rstrip(".")
    return names


def _down(modules: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the parts of the blocks on the way down, and their original names."""
    position = 1
    for block in _numbered("down_blocks", modules):
        for resnet in _numbered(f"{block}.resnets", modules):
            yield resnet, f"input_blocks.{position}.0"
            yield resnet.replace(".resnets.", ".attentions."), f"input_blocks.{position}.1"
            position += 1
        if f"{block}.downsamplers.0" in modules:
            yield f"{block}.downsamplers.0", f"input_blocks.{position}.0.op"
            position += 1


def _up(modules: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield the parts of the blocks on the way up, and their original names."""
    position = 0
    for block in _numbered("up_blocks", modules):
        for resnet in _numbered(f"{block}.resnets", modules):
            yield resnet, f"output_blocks.{position}.0"
            yield resnet.replace(".resnets.", ".attentions."), f"output_blocks.{position}.1"
            position += 1
        place = 2 if f"{block}.attentions.0" in modules else 1
        yield f"{block}.upsamplers.0", f"output_blocks.{position - 1}.{place}"


def _numbered(parent: str, modules: Collection[str]) -> Iterator[str]:
    """Yield the members of a list of modules in order."""
    number = 0
    while f"{parent}.{number}" in modules:
        yield f"{parent}.{number}"
        number += 1
