"""LoRA on the projections of nn.MultiheadAttention, which calls no layer for them."""

import pytest
import torch
from torch import nn

from deltahub import AdapterModel, AutoDeltaModel, LoraModel
from deltahub.errors import TargetError
from tests.backbones import stir


class Attending(nn.Module):
    """An attention with keys and values of its own."""

    def __init__(self, kind=nn.MultiheadAttention, **options):
        super().__init__()
        torch.manual_seed(1)
        self.attn = kind(8, 2, **options)

    def forward(self, x, **options):
        key = x[..., : self.attn.kdim]
        return self.attn(x, key, key, **options)[0]


class Doubled(nn.MultiheadAttention):
    """An attention that returns twice its output."""

    def forward(self, *args, **options):
        return 2 * super().forward(*args, **options)[0], None


X = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("options", "addresses", "parameters"),
    [
        ({}, ["attn"], 128),
        ({"batch_first": True}, ["attn.q", "attn.out_proj"], 64),
        ({"kdim": 6, "vdim": 6}, ["attn.k", "attn.v"], 56),
        ({"bias": False, "add_bias_kv": True, "add_zero_attn": True}, ["attn.proj"], 32),
    ],
    ids=["whole", "batch-first", "other-widths", "extra-keys"],
)
def test_the_projections_act_alike_in_training_evaluation_merged_and_loaded(tmp_path, options, addresses, parameters):
    model = Attending(**options)
    plain = model(X)
    delta = LoraModel(model, lora_r=2, modified_modules=addresses)
    assert torch.allclose(model(X), plain, atol=1e-6)
    stir(delta)
    acting = model(X)
    assert sum(parameter.numel() for parameter in delta.parameters()) == parameters
    assert not torch.allclose(acting, plain, atol=1e-3)
    acting.sum().backward()
    assert all(parameter.grad is not None for parameter in delta.parameters())

    delta.freeze_module()
    delta.save_finetuned(tmp_path)
    loaded = Attending(**options)
    AutoDeltaModel.from_finetuned(tmp_path, loaded)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model(X), acting, atol=1e-4)
        assert torch.allclose(loaded(X), acting, atol=1e-4)
        delta.merge()
        assert torch.allclose(model(X), acting, atol=1e-4)
        delta.unmerge()
        delta.detach()
        assert torch.allclose(model(X), plain, atol=1e-6)


@pytest.fixture
def encoder():
    """An encoder of PyTorch's own, which has a fast path of its own in eval mode."""
    torch.manual_seed(3)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True), 2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_the_default_is_q_and_v_and_acts_on_the_fast_path(encoder):
    delta = LoraModel(encoder, lora_r=2)
    assert {key.split(".deltas.")[1] for key, _ in delta.named_parameters()} == {
        f"{part}.lora_{side}" for part in "qv" for side in "AB"
    }
    stir(delta)
    padding = torch.tensor([[False] * 4, [False] * 3 + [True], [False] * 2 + [True] * 2])
    trained = encoder(X, src_key_padding_mask=padding)
    encoder.eval()
    with torch.no_grad():
        acting = encoder(X, src_key_padding_mask=padding)
        delta.detach()
        plain = encoder(X, src_key_padding_mask=padding)
    assert torch.allclose(acting[~padding], trained[~padding], atol=1e-5)
    assert not torch.allclose(acting[~padding], plain[~padding], atol=1e-3)


def test_several_loras_on_an_attention_add_up(encoder):
    first = LoraModel(encoder, lora_r=2, modified_modules=["self_attn.q", "self_attn.v"])
    second = LoraModel(encoder, lora_r=3, modified_modules=["self_attn"], name="second")
    for delta in (first, second):
        stir(delta)
    both = encoder(X)
    first.detach()
    alone = encoder(X)
    first.attach()
    assert torch.allclose(encoder(X), both, atol=1e-5)
    assert not torch.allclose(alone, both, atol=1e-3)
    first.merge()
    second.merge()
    assert torch.allclose(encoder(X), both, atol=1e-5)


def test_an_attention_in_half_precision_keeps_its_dtype():
    model = Attending().bfloat16()
    stir(LoraModel(model, lora_r=2, modified_modules=["attn"]))
    assert model(X.bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize("option", [{"use_dora": True}, {"use_bias": True}, {"lora_dropout": 0.1}])
def test_options_that_an_attention_cannot_have_are_refused(option):
    with pytest.raises(TargetError, match=f"reads its weights itself and has no {next(iter(option))}"):
        LoraModel(Attending(), modified_modules=["attn"], **option)


def test_an_attention_with_a_forward_of_its_own_is_refused():
    with pytest.raises(TargetError, match="its forward is Doubled's own"):
        LoraModel(Attending(Doubled), modified_modules=["attn"])


def test_a_lora_behind_another_delta_on_the_attention_is_refused(encoder):
    AdapterModel(encoder, modified_modules=["self_attn"])
    with pytest.raises(TargetError, match="'adapter' already changes its output"):
        LoraModel(encoder, modified_modules=["self_attn"])


@pytest.mark.parametrize("addresses", [["attn.in_proj_weight", "attn.v"], ["attn.v", "attn.in_proj_weight"]], ids=str)
def test_parameters_by_name_and_projections_do_not_mix_on_an_attention(addresses):
    model = Attending()
    LoraModel(model, modified_modules=addresses[:1])
    with pytest.raises(TargetError, match=r"already acts on its parameters|computes its output anew"):
        LoraModel(model, modified_modules=addresses[1:], name="second")


@pytest.mark.slow
def test_an_attention_compiles_as_one_graph():
    model = Attending(batch_first=True)
    stir(LoraModel(model, lora_r=2, modified_modules=["attn"]))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(X), model(X), atol=1e-5)
