"""Checks of the function that a layer computes, and the deltas that rely on it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding, BartScaledWordEmbedding
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm, Gemma3TextScaledWordEmbedding
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding
from transformers.models.whisper.modeling_whisper import WhisperPositionalEmbedding
from transformers.pytorch_utils import Conv1D

from deltahub import BitFitModel, IA3Model, LayerNormModel, LoraModel
from deltahub.engine.layers import NormForm, linear_fault, lookup_fault, norm_form, update_fault
from deltahub.errors import MergeError, TargetError
from tests.backbones import stir


class Doubled(nn.Linear):
    """Twice what a linear layer computes."""

    def forward(self, x):
        return 2 * super().forward(x)


class Pair(nn.Linear):
    """A linear layer that returns two tensors, as routers do."""

    def forward(self, x):
        return super().forward(x), x


class DoubledConv1D(Conv1D):
    """A Conv1D with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class SpecialRow(nn.Embedding):
    """A table with one row that is kept elsewhere."""

    special = 3

    def forward(self, rows):
        return super().forward(rows) * (rows != self.special)[..., None]


class GatedNorm(nn.LayerNorm):
    """A norm of its input times a gate."""

    def forward(self, x, gate=None):
        return super().forward(x if gate is None else x * F.silu(gate))


class HiddenEps(nn.Module):
    """An RMSNorm that does not tell its eps."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.25)


class HiddenEpsNorm(HiddenEps):
    """The same by the name of a norm."""


class Quantised(nn.Linear):
    """A linear layer whose weight holds codes: what counts is the dtype, not the name."""

    def __init__(self, n_in, n_out, dtype=torch.int8):
        super().__init__(n_in, n_out)
        self.scale = 0.01
        codes = (self.weight.detach() / self.scale).round().to(dtype)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class Packed(torch.Tensor):
    """A tensor with values in a form of its own."""


def packed(layer):
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Packed), requires_grad=False)
    return layer


class Holder(nn.Module):
    """A backbone of one layer, and one after it."""

    def __init__(self, layer):
        super().__init__()
        self.inner, self.head = layer, nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.inner(x))


@pytest.mark.parametrize(
    ("layer", "is_linear", "can_hold"),
    [
        (nn.Linear(8, 8), True, True),
        (Conv1D(8, 8), True, True),
        (FalconLinear(8, 8), True, True),
        (Doubled(8, 8), False, True),
        (DoubledConv1D(8, 8), False, True),
        (Pair(8, 8), False, False),
        (Quantised(8, 8), False, True),
        (Quantised(8, 8, torch.float8_e4m3fn), False, True),
        (packed(nn.Linear(8, 8)), False, True),
        (nn.LazyLinear(8), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_a_linear_layer_is_one_by_its_function_not_by_its_class(layer, is_linear, can_hold):
    assert (linear_fault(layer) == "", update_fault(layer) == "") == (is_linear, can_hold)


@pytest.mark.parametrize(
    ("table", "is_lookup"),
    [
        (nn.Embedding(9, 4), True),
        (Gemma3TextScaledWordEmbedding(9, 4, 0, embed_scale=3.0), True),
        (Gemma3TextScaledWordEmbedding(9, 4, 0, embed_scale=3.0).to("meta"), True),
        (BartScaledWordEmbedding(9, 4, 0, embed_scale=3.0), True),
        (BartLearnedPositionalEmbedding(9, 4), False),
        (OPTLearnedPositionalEmbedding(9, 4), False),
        (WhisperPositionalEmbedding(9, 4), False),
        (SpecialRow(9, 4), False),
        (nn.Embedding(9, 4, max_norm=1.0), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_an_embedding_is_a_table_only_if_it_looks_its_first_argument_up(table, is_lookup):
    assert (lookup_fault(table) == "") == is_lookup


@pytest.mark.parametrize(
    ("layer", "form"),
    [
        (nn.LayerNorm(8, eps=1e-3), NormForm(True, 1e-3)),
        (Gemma3RMSNorm(8, eps=1e-6).bfloat16(), NormForm(False, 1e-6)),
        (Gemma3RMSNorm(8, eps=1e-6).to("meta"), NormForm(False, 1e-6)),
        (nn.RMSNorm(8), NormForm(False, torch.finfo(torch.float32).eps)),
        (GatedNorm(8), None),
        (HiddenEpsNorm(), None),
        (nn.BatchNorm1d(8), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_a_norm_is_recognised_with_its_eps_and_a_gated_one_is_none(layer, form):
    assert norm_form(layer) == form


def test_the_trial_leaves_the_layer_and_the_random_numbers_as_they_were():
    table = BartScaledWordEmbedding(9, 4, 0, embed_scale=3.0)
    table.train()
    before, draws = table.weight.detach().clone(), torch.get_rng_state()
    lookup_fault(table)
    assert torch.equal(table.weight, before)
    assert torch.equal(torch.get_rng_state(), draws)
    assert table.training


def test_a_lora_on_a_scaled_embedding_is_scaled_and_merges_to_the_same_outputs():
    backbone = Holder(Gemma3TextScaledWordEmbedding(9, 8, 0, embed_scale=3.0))
    delta = LoraModel(backbone, lora_r=2, modified_modules=["inner"])
    stir(delta)
    rows = torch.arange(9)
    update = delta.insertions["inner"]
    expected = 3 * (backbone.inner.weight + update.scale * (update.lora_B @ update.lora_A).T)
    unmerged = backbone(rows)
    assert torch.allclose(backbone.inner(rows), expected, atol=1e-5)
    delta.merge()
    assert torch.allclose(backbone(rows), unmerged, atol=1e-5)


def test_the_padding_row_of_an_embedding_gets_no_gradient_from_a_lora():
    backbone = Holder(nn.Embedding(9, 8, padding_idx=0))
    delta = LoraModel(backbone, lora_r=2, modified_modules=["inner"])
    backbone(torch.tensor([0, 1])).sum().backward()
    gradient = delta.insertions["inner"].lora_A.grad
    assert gradient[:, 0].abs().sum() == 0
    assert gradient[:, 1].abs().sum() > 0


@pytest.mark.parametrize(
    ("model", "options", "layer"),
    [
        (LoraModel, {}, OPTLearnedPositionalEmbedding(9, 8)),
        (LoraModel, {}, Pair(8, 8)),
        (IA3Model, {}, Pair(8, 8)),
        (LoraModel, {}, nn.LazyLinear(8)),
        (LoraModel, {"use_dora": True}, Doubled(8, 8)),
        (LoraModel, {"use_dora": True}, Quantised(8, 8)),
        (LoraModel, {"use_dora": True}, packed(nn.Linear(8, 8))),
        (LayerNormModel, {}, GatedNorm(8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_layer_that_does_not_compute_what_a_method_assumes_is_refused_by_name(model, options, layer):
    backbone = Holder(layer)
    with pytest.raises(TargetError, match="inner"):
        model(backbone, modified_modules=["inner"], **options)
    assert not any("deltas" in name for name, _ in backbone.named_modules())


@pytest.mark.parametrize("model", [LoraModel, IA3Model, BitFitModel])
@pytest.mark.parametrize("layer", [Doubled(8, 8), DoubledConv1D(8, 8)], ids=["Linear", "Conv1D"])
def test_a_delta_on_a_layer_with_its_own_forward_is_not_merged(model, layer):
    _refused_whole(Holder(layer), model)


@pytest.mark.parametrize("model", [LoraModel, IA3Model])
@pytest.mark.parametrize(
    "layer",
    [
        parametrizations.spectral_norm(nn.Linear(8, 8)),
        parametrizations.weight_norm(nn.Linear(8, 8)),
        spectral_norm(nn.Linear(8, 8)),
        prune.l1_unstructured(nn.Linear(8, 8), "weight", amount=0.5),
        Quantised(8, 8),
        packed(nn.Linear(8, 8)),
    ],
    ids=["parametrized spectral", "parametrized norm", "spectral", "pruned", "int8", "packed"],
)
def test_nothing_is_merged_into_weights_that_are_computed_or_quantised(model, layer):
    _refused_whole(Holder(layer), model)


def _refused_whole(backbone, model):
    delta = model(backbone, modified_modules=["head", "inner"])
    stir(delta)
    backbone.eval()
    x = torch.ones(2, 8)
    before, head = backbone(x), backbone.head.weight.detach().clone()
    with pytest.raises(MergeError, match="inner"):
        delta.merge()
    assert torch.equal(backbone.head.weight, head)
    assert torch.equal(backbone(x), before)
    delta.remove()
