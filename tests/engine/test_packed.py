"""Layers of packages that need a GPU, tried with stand-ins that have their attributes and shapes."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deltahub import AutoDeltaModel, LoraModel
from deltahub.engine.quantised.kinds import quantised
from deltahub.errors import MergeError, TargetError
from deltahub.handle.merging import merged_copy
from tests.backbones import stir

N_IN, N_OUT, GROUP = 32, 24, 8
PACK = 8  # 4-bit codes in one int32


def packed(codes):
    """Codes ``(..., n)`` of 4 bits in int32, ``(..., n / 8)``."""
    shifts = 4 * torch.arange(PACK, dtype=torch.int32)
    return (codes.to(torch.int32).unflatten(-1, (-1, PACK)) << shifts).sum(-1, dtype=torch.int32)


def unpacked(words):
    return ((words.unsqueeze(-1) >> 4 * torch.arange(PACK, dtype=torch.int32)) & 15).flatten(-2)


def group_scales(weight):
    """Scales of groups of inputs, ``(n_in / group, n_out)``, and the codes ``(n_in, n_out)``."""
    groups = weight.T.unflatten(0, (-1, GROUP))
    scales = (groups.abs().amax(1) / 7).half()
    codes = (groups / scales.float()[:, None]).round() + 8
    return scales, codes.flatten(0, 1).clamp(0, 15)


class TorchQuantLinear(nn.Module):
    """As in GPTQModel: packed along the inputs."""

    def __init__(self, weight, bias):
        super().__init__()
        self.in_features, self.out_features, self.bits, self.group_size = N_IN, N_OUT, 4, GROUP
        scales, codes = group_scales(weight)
        self.register_buffer("qweight", packed(codes.T).T.contiguous())
        self.register_buffer("qzeros", packed(torch.full_like(scales, 8)))
        self.register_buffer("scales", scales)
        self.register_buffer("g_idx", torch.arange(N_IN, dtype=torch.int32) // GROUP)
        self.register_buffer("bias", bias.half())

    def forward(self, x):
        zeros = unpacked(self.qzeros)
        weight = self.scales[self.g_idx] * (unpacked(self.qweight.T).T - zeros[self.g_idx])
        return (x @ weight.to(x.dtype) + self.bias).to(x.dtype)


class WQLinear_GEMM(nn.Module):  # noqa: N801
    """As in AutoAWQ: packed along the outputs, computed in float16."""

    def __init__(self, weight, bias):
        super().__init__()
        self.in_features, self.out_features, self.w_bit, self.group_size = N_IN, N_OUT, 4, GROUP
        scales, codes = group_scales(weight)
        self.register_buffer("qweight", packed(codes))
        self.register_buffer("qzeros", packed(torch.full_like(scales, 8)))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias.half())

    def forward(self, x):
        spread = [t.repeat_interleave(GROUP, 0) for t in (self.scales, unpacked(self.qzeros))]
        return (x.half() @ (spread[0] * (unpacked(self.qweight) - spread[1])) + self.bias).to(x.dtype)


class EetqLinear(nn.Module):
    """As in transformers: no sizes, the weight the other way round."""

    def __init__(self, weight, bias):
        super().__init__()
        scales = (weight.abs().amax(1) / 127).half()
        self.weight = nn.Parameter((weight / scales.float()[:, None]).round().to(torch.int8).T.contiguous(), False)
        self.weight_scales = nn.Parameter(scales, False)
        self.bias = nn.Parameter(bias.half(), False)

    def forward(self, x):
        return (x.half() @ (self.weight.half() * self.weight_scales) + self.bias).to(x.dtype)


class QuantizedLinear(nn.Module):
    """As in AQLM: each group of 8 weights is a sum of two vectors."""

    def __init__(self, weight, bias):
        super().__init__()
        self.in_features, self.out_features, self.in_group_size = N_IN, N_OUT, 8
        draw = torch.Generator().manual_seed(3)
        self.codebooks = nn.Parameter(torch.randn(2, 16, 1, 8, generator=draw).half(), False)
        self.codes = nn.Parameter(torch.randint(0, 16, (N_OUT, N_IN // 8, 2), generator=draw).to(torch.int8), False)
        self.scales = nn.Parameter(torch.full((N_OUT, 1, 1, 1), 0.1).half(), False)
        self.bias = nn.Parameter(bias.half(), False)

    def forward(self, x):
        vectors = sum(book[self.codes[..., i].long()] for i, book in enumerate(self.codebooks))
        weight = (self.scales * vectors).permute(0, 2, 1, 3).reshape(N_OUT, N_IN)
        return F.linear(x.half(), weight, self.bias).to(x.dtype)


class HQQLinear(nn.Module):
    """As in HQQ: codes in W_q, all else in a dict."""

    def __init__(self, layer, quant_config, compute_dtype=torch.float16, device="cpu"):
        super().__init__()
        self.quant_config, self.compute_dtype, self.device, self.offload_meta = (
            quant_config,
            compute_dtype,
            device,
            False,
        )
        self.bias = None
        if layer is not None:
            self.bias = layer.bias.detach().to(compute_dtype)
            self.quantize(layer.weight.detach(), **{k: v for k, v in quant_config.items() if k != "offload_meta"})

    @property
    def weight(self):
        return torch.empty(0, dtype=self.compute_dtype)

    def quantize(self, weight, weight_quant_params):
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]
        scale = weight.float().abs().amax(1, keepdim=True) / 127
        self.W_q = nn.Parameter((weight.float() / scale + 128).round().to(torch.uint8), False)
        self.meta = {"shape": weight.shape, "nbits": 8, "scale": scale.to(self.compute_dtype), "zero": 128}

    def dequantize(self):
        return (self.W_q.to(self.compute_dtype) - self.meta["zero"]) * self.meta["scale"]

    def forward(self, x):
        return F.linear(x.to(self.compute_dtype), self.dequantize(), self.bias).to(x.dtype)


def hqq(weight, bias):
    layer = nn.Linear(N_IN, N_OUT)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return HQQLinear(layer, {"weight_quant_params": {"nbits": 8}})


class FP8Linear(nn.Linear):
    """As in transformers: float8 in blocks, each with a scale."""

    def __init__(self, weight, bias):
        super().__init__(N_IN, N_OUT)
        self.block_size = (16, 16)
        blocks = F.pad(weight, (0, 0, 0, 8)).unflatten(0, (2, 16)).unflatten(2, (2, 16))
        scales = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scales[:, None, :, None]).reshape(32, N_IN)[:N_OUT]
        self.weight = nn.Parameter(codes.to(torch.float8_e4m3fn), requires_grad=False)
        self.weight_scale_inv = nn.Parameter(scales, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x):
        scales = self.weight_scale_inv.repeat_interleave(16, 0).repeat_interleave(16, 1)[:N_OUT]
        return F.linear(x, self.weight.float() * scales, self.bias)


STAND_INS = {
    "GPTQ 4-bit": TorchQuantLinear,
    "AWQ 4-bit": WQLinear_GEMM,
    "EETQ int8": EetqLinear,
    "AQLM": QuantizedLinear,
    "HQQ 8-bit": hqq,
    "float8_e4m3fn": FP8Linear,
}


class Backbone(nn.Module):
    def __init__(self, make):
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        weight, bias = torch.randn(N_OUT, N_IN, generator=draw) / 8, torch.randn(N_OUT, generator=draw)
        self.layer = make(weight, bias)
        self.head = nn.Linear(N_OUT, 2, bias=False)
        self.head.weight.data.fill_(0.1)

    def forward(self, x):
        return self.head(self.layer(x))


X = torch.randn(5, N_IN, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=STAND_INS)
def name(request):
    return request.param


def make(name):
    return Backbone(STAND_INS[name]).eval()


def test_a_weight_is_read_as_its_layer_acts(name):
    layer = make(name).layer
    coded = quantised(layer)
    assert (coded.name, coded.shape, coded.fault()) == (name, (N_OUT, N_IN), "")
    assert coded.compute_dtype in (torch.float16, torch.float32)
    assert coded.device.type == "cpu"
    acting = layer(X)
    assert torch.allclose(F.linear(X, coded.values().float(), layer.bias.float()), acting.float(), atol=0.01)
    assert torch.equal(layer(X), acting)


def test_lora_and_dora_train_are_saved_and_become_part_of_a_plain_copy(name, tmp_path):
    backbone = make(name)
    delta = LoraModel(backbone, lora_r=2, modified_modules=["layer"], use_dora=True)
    plain = backbone(X)
    assert torch.allclose(plain, make(name)(X), atol=0.01)
    stir(delta)
    delta.freeze_module()
    backbone(X).sum().backward()
    assert all(p.dtype == torch.float32 and p.grad.count_nonzero() for p in delta.parameters())
    delta.save_finetuned(tmp_path)
    again = make(name)
    AutoDeltaModel.from_finetuned(tmp_path, again)
    assert torch.equal(again(X), backbone(X))
    copied = merged_copy(backbone, dtype=torch.float32)
    assert type(copied.layer) is nn.Linear
    assert torch.allclose(copied(X), backbone(X), atol=0.01)


def test_new_codes_are_written_where_the_layer_can_make_them_and_refused_elsewhere(name):
    backbone = make(name)
    delta = LoraModel(backbone, lora_r=2, modified_modules=["layer"])
    stir(delta)
    acting = backbone(X)
    if name != "HQQ 8-bit":
        with pytest.raises(MergeError, match=r"are written by their own tools only; merged_copy"):
            delta.merge(requantise=True)
    else:
        assert 0 < delta.merge(requantise=True).relative["layer.W_q"] < 0.05
        assert torch.allclose(backbone(X), acting, atol=0.05)
        delta.unmerge()
    assert torch.equal(backbone(X), acting)


def test_kernels_that_cannot_run_are_named_before_anything_changes():
    class Broken(TorchQuantLinear):
        def forward(self, x):
            raise RuntimeError("no kernel for cpu")

    backbone = Backbone(Broken)
    LoraModel(backbone, lora_r=2, modified_modules=["layer"]).remove()
    with pytest.raises(TargetError, match=r"its GPTQ 4-bit kernels do not run here .*no kernel for cpu"):
        LoraModel(backbone, modified_modules=["layer"], use_dora=True)
    assert "deltas" not in backbone.layer._modules


def test_codes_whose_package_is_missing_or_whose_values_are_elsewhere_are_named(monkeypatch):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from tests.quantised import REAL

    layer = REAL["nf4"](nn.Linear(64, 64))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "needs the package bitsandbytes: pip install bitsandbytes" in quantised(layer).fault()
    monkeypatch.undo()
    layer.weight = type(layer.weight)(layer.weight.data.to("meta"), quant_state=layer.weight.quant_state)
    assert "not on this device (offloaded" in quantised(layer).fault()
