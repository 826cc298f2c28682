"""Tiny models with the names of a U-Net of diffusers and of a text encoder, and the sums that a file's updates must give."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.to_out[0](F.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x)))


class Transformer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        block = nn.Module()
        block.attn1 = Attention(width)
        self.transformer_blocks = nn.ModuleList([block])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.proj_in(x)
        rows = self.transformer_blocks[0].attn1(low.flatten(2).mT)
        return x + self.proj_out(rows.mT.view(low.shape))


class Resnet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.conv1(x)) + self.time_emb_proj(x.new_ones(4))[:, None, None]


class UNet2DConditionModel(nn.Module):
    """One block down and one up, with the names of diffusers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down_blocks, self.up_blocks = (nn.ModuleList([self._block(width)]) for _ in range(2))
        self.down_blocks[0].downsamplers = nn.ModuleList([nn.Module()])
        self.down_blocks[0].downsamplers[0].conv = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.proj_out = nn.Linear(width, 5)

    @staticmethod
    def _block(width: int) -> nn.Module:
        block = nn.Module()
        block.resnets, block.attentions = nn.ModuleList([Resnet(width)]), nn.ModuleList([Transformer(width)])
        return block

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(image)
        for block in (*self.down_blocks, *self.up_blocks):
            x = block.attentions[0](block.resnets[0](x))
            x = block.downsamplers[0].conv(x) if hasattr(block, "downsamplers") else x
        return self.proj_out(x.mean((2, 3)))


class CLIPTextModel(nn.Module):
    """One layer of a text encoder as transformers 5 names it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layer = nn.Module()
        layer.self_attn, layer.mlp = nn.Module(), nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(layer.self_attn, name, nn.Linear(width, width))
        layer.mlp.fc1 = nn.Linear(width, 2 * width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([layer])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.encoder.layers[0]
        x = x + layer.self_attn.out_proj(layer.self_attn.q_proj(x) * layer.self_attn.v_proj(x))
        return layer.mlp.fc1(x + layer.self_attn.k_proj(x))


IMAGE = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)
TEXT = torch.linspace(-1, 1, 2 * 3 * 8).view(2, 3, 8)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def output(backbone: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return backbone(IMAGE if isinstance(backbone, UNet2DConditionModel) else TEXT)


def updated(backbone: nn.Module, changes: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the output with a matrix added to the weight of each layer, flat for a convolution."""
    backbone = copy.deepcopy(backbone)
    for name, change in changes.items():
        weight = backbone.get_submodule(name).weight
        weight.data += change.view(weight.shape)
    return output(backbone)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=DRAW) * 0.5


DRAW = torch.Generator().manual_seed(1)
