import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from deltahub import AutoDeltaModel, LoraModel
from deltahub.deltas.lora import LowRankRows
from deltahub.engine.ledger import entries_of
from deltahub.errors import NoMatchError, TargetError
from tests.backbones import bert, gpt2, logits_of, original, stir, t5


class Layers(nn.Module):
    """One layer of each kind that LoRA knows, called by name or by position."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.conv = Conv1D(4, 5)
        self.rows = nn.Embedding(6, 5)

    def forward(self, ids, by_name=False):
        x = self.rows(input=ids) if by_name else self.rows(ids)
        return self.linear(input=x) + self.conv(x=x) if by_name else self.linear(x) + self.conv(x)


IDS = torch.tensor([[0, 3, 5]])


def matrices(delta, address):
    """A and B of one module."""
    found = dict(delta.named_parameters())
    return found[f"{address}.deltas.lora_A"], found[f"{address}.deltas.lora_B"]


@pytest.mark.parametrize(("address", "shape"), [("linear", (5, 4)), ("conv", (5, 4))])
def test_the_update_is_scaled_b_a_x(address, shape):
    model = Layers()
    delta = LoraModel(model, lora_r=2, lora_alpha=6, modified_modules=[address])
    stir(delta)
    layer, x = model.get_submodule(address), torch.randn(3, 5)
    a, b = matrices(delta, address)
    found = layer(x)
    delta.detach()

    assert (a.shape, b.shape) == ((2, shape[0]), (shape[1], 2))
    assert torch.allclose(layer(x) + 3 * x @ a.T @ b.T, found, atol=1e-6)


def test_lora_on_an_embedding_adds_rows():
    model = Layers()
    delta = LoraModel(model, lora_r=2, lora_alpha=6, modified_modules=["rows"])
    assert isinstance(delta.insertions["rows"], LowRankRows)
    a, b = matrices(delta, "rows")
    assert not a.any()  # starts as the identity
    assert b.any()
    stir(delta)
    found = model.rows(IDS)
    delta.detach()

    assert torch.allclose(model.rows(IDS) + 3 * (b @ a).T[IDS], found, atol=1e-6)


def test_inputs_by_name_are_seen():
    model = Layers()
    stir(LoraModel(model, modified_modules=["linear", "conv", "rows"]))

    assert torch.equal(model(IDS), model(ids=IDS, by_name=True))


def test_a_starts_as_a_linear_layer_does_and_b_at_zero():
    torch.manual_seed(0)
    a, b = matrices(LoraModel(original("bert"), lora_r=64, modified_modules=["0.attention.self.query"]), QUERY)

    assert not b.any()
    assert a.abs().max() <= 1 / 32**0.5  # kaiming uniform with a = sqrt(5)
    assert a.abs().max() > 0.9 / 32**0.5


QUERY = "bert.encoder.layer.0.attention.self.query"


def test_dropout_acts_in_training_only():
    backbone = bert()
    delta = LoraModel(backbone, lora_dropout=0.5)
    stir(delta)
    layer, x = backbone.get_submodule(QUERY), torch.ones(1, 16)

    assert torch.equal(layer(x), layer(x))
    backbone.train()
    assert len({layer(x).sum().item() for _ in range(20)}) > 1
    assert not any("dropout" in name for name in delta.state_dict())


def test_alpha_over_r_is_the_scale():
    for alpha, scale in [(8, 1.0), (16, 2.0), (0.5, 0.0625)]:
        delta = LoraModel(bert(), lora_r=8, lora_alpha=alpha)
        assert scale == delta.insertions[QUERY].scale


def test_lora_on_gpt2_acts_on_the_query_and_value_shares_by_default():
    backbone = gpt2()
    delta = LoraModel(backbone, lora_r=2)

    assert list(delta.state_dict())[:4] == [
        f"transformer.h.0.attn.c_attn.deltas.{part}.lora_{leaf}" for part in "qv" for leaf in "AB"
    ]


def test_lora_on_tied_embeddings_leaves_the_head_alone(tmp_path):
    backbone = gpt2()
    logits = logits_of(backbone)
    delta = LoraModel(backbone, modified_modules=["wte"])
    delta.freeze_module()
    stir(delta)

    assert backbone.lm_head.weight is backbone.transformer.wte.weight
    assert not torch.equal(logits, logits_of(backbone))
    delta.save_finetuned(tmp_path)
    fresh = gpt2()
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)
    assert torch.equal(logits_of(backbone), logits_of(fresh))


def test_the_language_model_head_is_left_out_unless_it_is_asked_for():
    backbone = t5()
    delta = LoraModel(backbone, modified_modules=["lm_head"], exclude_modules=[])

    assert list(delta.insertions) == ["lm_head"]


def test_exclude_modules_is_heeded():
    delta = LoraModel(bert(), modified_modules=["query"], exclude_modules=["layer.0"])

    assert list(delta.insertions) == ["bert.encoder.layer.1.attention.self.query"]


def test_the_arguments_have_the_order_of_opendelta():
    delta = LoraModel(bert(), 4, 8, 0.1, ["query"], ["deltas", "classifier"], ["layer.1"], False)

    assert (delta.config.lora_r, delta.config.lora_alpha, delta.config.lora_dropout) == (4, 8, 0.1)
    assert delta.config.unfrozen_modules == ("deltas", "classifier")
    assert delta.config.exclude_modules == ("layer.1",)


def test_modules_have_ranks_and_scales_of_their_own():
    patterns = {"rank_pattern": {"query": 4, "1.attention.self.query": 3}, "alpha_pattern": {"value": 6}}
    backbone = bert()
    delta = LoraModel(backbone, lora_r=2, lora_alpha=2, modified_modules=["query", "value"], **patterns)
    (entry,) = entries_of(backbone)
    found = {name: (len(one.lora_A), one.scale) for name, one in entry.insertions.items() if "layer.1" in name}

    assert set(found.values()) == {(4, 0.5), (2, 3.0)}  # the first address that means a module counts
    assert LoraModel.config_class.from_dict(delta.config.to_dict()) == delta.config
    assert "rank_pattern" not in LoraModel(bert()).config.to_dict()


def test_a_pattern_that_means_no_module_is_an_error():
    with pytest.raises(NoMatchError, match="key"):
        LoraModel(bert(), modified_modules=["query"], rank_pattern={"key": 4})


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (nn.Conv1d, {"groups": 2, "padding": "same", "dilation": 2}),
        (nn.Conv2d, {"groups": 4, "stride": 2, "padding": 1, "padding_mode": "reflect"}),
        (nn.Conv2d, {"dilation": 2, "padding": 1, "padding_mode": "circular"}),
        (nn.Conv3d, {"groups": 2, "bias": False}),
    ],
    ids=["dilated", "strided", "circular", "3-d"],
)
@pytest.mark.parametrize("use_bias", [False, True])
def test_a_convolution_of_any_kind_computes_the_same_merged(kernel, options, use_bias):
    layer = kernel(4, 8, 3, **options)
    model, x = nn.Sequential(layer), torch.randn(2, 4, *(7,) * len(layer.kernel_size))
    plain = model(x)
    delta = LoraModel(model, lora_r=3, modified_modules=["0"], use_bias=use_bias and layer.bias is not None)
    assert torch.equal(model(x), plain)
    stir(delta)
    acting = model(x)
    delta.merge()
    assert torch.allclose(model(x), acting, atol=1e-4)
    assert not torch.allclose(acting, plain, atol=1e-2)


class Rescaled(nn.Conv2d):
    """A convolution with twice its weight."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [(nn.ConvTranspose2d(4, 4, 3), "transposed"), (Rescaled(4, 4, 3), "the convolution is Rescaled's own")],
)
def test_a_convolution_that_computes_something_else_is_refused(layer, reason):
    with pytest.raises(TargetError, match=reason):
        LoraModel(nn.Sequential(layer), modified_modules=["0"])


class Patches(nn.Module):
    """A vision transformer without a config: patches by a convolution, learned positions, a fused projection, a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 8, 4, 4)})
        self.pos_embed = nn.Parameter(torch.randn(1, 4, 8))
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3))

    def forward(self, images):
        x = self.patch_embed["proj"](images).flatten(2).mT + self.pos_embed
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return self.head(x.mean(1))


def test_a_plain_model_is_adapted_by_real_names_saved_and_loaded(tmp_path):
    model, images = nn.Sequential(Patches()), torch.randn(2, 3, 8, 8)
    delta = LoraModel(model, lora_r=2, modified_modules=["patch_embed.proj", "qkv", "proj", "head.1"])
    delta.freeze_module(exclude=["deltas", "pos_embed"])
    trained = {name.partition(".deltas.")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"0.patch_embed.proj", "0.qkv", "0.proj", "0.head.1", "0.pos_embed"}
    stir(delta)
    with torch.no_grad():
        model[0].pos_embed.add_(1)
    delta.save_finetuned(tmp_path)
    loaded = nn.Sequential(Patches())
    AutoDeltaModel.from_finetuned(tmp_path, loaded)
    assert torch.equal(loaded(images), model(images))
