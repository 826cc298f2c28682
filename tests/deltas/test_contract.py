"""Every delta type passes the contract of `deltahub.testing`, and refuses options that can never work."""

import pytest
import torch

from deltahub import AutoDeltaModel
from deltahub.checkpoint.config import known_types
from deltahub.checkpoint.description import fixed_values
from deltahub.errors import ConfigError
from deltahub.testing import DeltaContract
from tests.backbones import BACKBONES, bert, untouched
from tests.grids import in_turn

FOR_EACH_BACKBONE = [
    name for name, test in vars(DeltaContract).items() if "backbone" in getattr(test, "__annotations__", ())
]


class Contract(DeltaContract):
    """The contract on BERT and one other backbone, another for each test, so that every type meets all of them."""

    @pytest.fixture
    def backbone(self, request):
        return BACKBONES[request.param]()

    def pytest_generate_tests(self, metafunc):
        if "backbone" in metafunc.fixturenames:
            place = FOR_EACH_BACKBONE.index(metafunc.function.__name__) + known_types().index(self.delta_type)
            suited = sorted(BACKBONES.keys() - self.unsuited.keys())
            metafunc.parametrize("backbone", in_turn(suited, place, always=["bert"]), indirect=True)


class TestLora(Contract):
    delta_type = "lora"
    options = {"lora_r": 2}
    parameters = 2 * 2 * (2 * 16 + 16 * 2)  # layers * (q, v) * (A + B)
    change_at_start = 0
    mergeable = True


class TestAdaLora(Contract):
    delta_type = "adalora"
    options = {
        "init_r": 3,
        "target_r": 2,
        "lora_alpha": 300,
    }  # A and B start small, so that a few steps would move little
    parameters = 2 * 2 * (3 * 16 + 3 + 16 * 3)  # layers * (q, v) * (A + E + B)
    change_at_start = 0
    mergeable = True


class TestVera(Contract):
    delta_type = "vera"
    options = {"r": 3}
    parameters = 2 * 2 * (3 + 16)  # layers * (q, v) * (d + b)
    change_at_start = 0
    mergeable = True


class TestAdapter(Contract):
    delta_type = "adapter"
    options = {"bottleneck_dim": 3}
    parameters = 2 * 2 * (16 * 3 + 3 + 3 * 16 + 16)  # layers * (attention, feed-forward) * (down + up)
    change_at_start = 0.05


class TestParallelAdapter(Contract):
    delta_type = "parallel_adapter"
    options = {"bottleneck_dim": 3}
    parameters = 2 * 2 * (16 * 3 + 3 + 3 * 16 + 16)  # the same beside both
    change_at_start = 0.05


class TestLowRankAdapter(Contract):
    delta_type = "low_rank_adapter"
    options = {"reduction_factor": 4}
    parameters = 2 * 2 * (16 + 4 + 4 + 4 + 16 + 16)  # layers * 2 * (left, right, bias of both ways)


class TestCompacter(Contract):
    delta_type = "compacter"
    options = {"reduction_factor": 4, "hypercomplex_division": 2}
    parameters = 2 * 2 * (2 * 2**3 + 2 * (8 + 2) + 4 + 2 * (2 + 8) + 16)  # layers * 2 * (rules, down + bias, up + bias)
    change_at_start = 0.5


class TestIA3(Contract):
    delta_type = "ia3"
    parameters = 2 * (16 + 16 + 24)  # layers * (k, v, inner feed-forward)
    change_at_start = 0
    mergeable = True


class TestLayerNorm(Contract):
    delta_type = "layer_norm"
    parameters = 2 * 2 * 2 * 16  # layers * 2 * (scale, shift)
    change_at_start = 0
    mergeable = True


class TestBitFit(Contract):
    delta_type = "bitfit"
    parameters = 2 * (4 * 16 + 16 + 24 + 16 + 16)  # layers * (q, k, v, proj + norm + w1 + w2 + norm)
    change_at_start = 0
    mergeable = True


class TestPrefix(Contract):
    delta_type = "prefix"
    options = {"prefix_token_num": 3, "embed_dim": 4, "mid_dim": 5}
    parameters = 3 * 4 + 4 * 5 + 5 + (5 + 1) * (2 * 2 * 16)  # places + middle + layers * (keys, values)


class TestWeightUpdate(Contract):
    delta_type = "weight_update"
    options = {"method": "loha", "options": {"r": 2}}
    parameters = 2 * 2 * 2 * (2 * 16 + 16 * 2)  # layers * (q, v) * both products * (A + B)
    change_at_start = 0
    mergeable = True


class TestReft(Contract):
    delta_type = "reft"
    options = {"r": 2}
    parameters = 2 * (2 * 16 + 2 * 16 + 2)  # layers * (R + W + b)
    routable = False


class TestInvertibleAdapter(Contract):
    delta_type = "invertible_adapter"
    options = {"reduction_factor": 2}
    parameters = 2 * (8 * 4 + 4 + 4 * 8 + 8)  # networks * (down + up)
    change_at_start = 0.05


class TestUnion(Contract):
    delta_type = "union"
    options = {"parts": [{"delta_type": "lora", "lora_r": 2}, {"delta_type": "adapter", "bottleneck_dim": 3}]}
    parameters = TestLora.parameters + TestAdapter.parameters
    change_at_start = 0.05


class TestFusion(Contract):
    delta_type = "fusion"
    options = {
        "parts": [{"delta_type": "adapter", "bottleneck_dim": 3}, {"delta_type": "adapter", "bottleneck_dim": 2}]
    }
    parameters = 2 * 2 * (16 * 16 + 16 + 16 * 16 + 16 + 16 * 16)  # layers * (attention, feed-forward) * (Q + K + V)

    def make(self, backbone, **options):
        delta = super().make(backbone, **options)
        draw = torch.Generator().manual_seed(4)
        for insertion in delta.insertions.values():  # members that were trained
            for buffer in insertion.buffers():
                buffer.add_(torch.randn(buffer.shape, generator=draw) * 0.3)
        return delta


class TestTokenRows(Contract):
    delta_type = "token_rows"
    options = {"token_indices": [34, 15, 22]}
    parameters = 3 * 16  # tokens * width
    change_at_start = 0
    mergeable = True
    unsuited = {"vit": "has no table of tokens"}


class TestSoftPrompt(Contract):
    delta_type = "soft_prompt"
    options = {"soft_token_num": 3}
    parameters = 3 * 16  # tokens * width
    routable = False
    unsuited = {"vit": "takes no text"}


OPTIONS = {contract.delta_type: contract.options for contract in Contract.__subclasses__()}


def test_every_built_in_type_has_a_contract():
    assert set(OPTIONS) == set(known_types())


WITH_FIXED_VALUES = [
    *(({"delta_type": kind, **OPTIONS[kind]}) for kind in ("vera", "adalora", "fusion", "adapter")),
    {"delta_type": "compacter", **OPTIONS["compacter"], "learn_phm": False},
    {"delta_type": "weight_update", "method": "sparse", "options": {"places": 9}, "modified_modules": ["attn.q"]},
]


@pytest.mark.parametrize("options", WITH_FIXED_VALUES, ids=lambda options: options["delta_type"])
def test_saved_values_that_do_not_train_are_counted_as_fixed(options):
    delta = AutoDeltaModel.from_config(options, bert())
    delta.freeze_module()
    tensors = delta.state_dict()
    trained = sum(parameter.numel() for parameter in delta.parameters())
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    assert fixed_values(delta.config.to_dict(), sizes) == sum(sizes.values()) - trained


BAD_OPTIONS = [
    ("lora", {"lora_r": 0}, "lora_r must be .* 1, got 0"),
    ("lora", {"lora_r": 2.5}, "lora_r must be .*integer, got 2.5"),
    ("lora", {"lora_alpha": "16"}, "lora_alpha must be .*number, got '16'"),
    ("lora", {"lora_dropout": 1.0}, "lora_dropout must be .* 1, got 1.0"),
    ("lora", {"lora_dropout": -0.1}, "lora_dropout must be .* 0, got -0.1"),
    ("lora", {"use_dora": "yes"}, "use_dora must be .*boolean, got 'yes'"),
    ("parallel_adapter", {"bottleneck_dim": 0}, "bottleneck_dim must be .* 1, got 0"),
    (
        "parallel_adapter",
        {"non_linearity": "gelu_nwe"},
        "non_linearity 'gelu_nwe' is unknown: choose one of .*gelu_new",
    ),
    ("parallel_adapter", {"scaled": "1"}, "scaled must be .*number, got '1'"),
    ("parallel_adapter", {"modified_modules": ["attn"]}, "are pairs, .* got 1 addresses"),
    ("low_rank_adapter", {"low_rank_rank": 0}, "low_rank_rank must be .* 1, got 0"),
    ("low_rank_adapter", {"low_rank_w_init": "glorot"}, "low_rank_w_init must be one of .*glorot-uniform"),
    ("low_rank_adapter", {"reduction_factor": 32}, "reduction_factor 32 leaves nothing of the width 16"),
    ("compacter", {"hypercomplex_division": 5}, "hypercomplex_division 5 does not divide"),
    ("compacter", {"hypercomplex_division": 0}, "hypercomplex_division must be .* 1, got 0"),
    ("compacter", {"phm_c_init": "zero"}, "phm_c_init must be one of .*normal"),
    ("compacter", {"reduction_factor": 16, "hypercomplex_division": 2}, "hypercomplex_division 2 does not divide 1"),
    ("prefix", {"prefix_token_num": 0}, "prefix_token_num must be .* 1, got 0"),
    ("prefix", {"reparameterize": "yes"}, "reparameterize must be .*boolean, got 'yes'"),
    ("prefix", {"embed_dim": 0}, "embed_dim must be .* 1, got 0"),
    ("prefix", {"mid_dim": 1.5}, "mid_dim must be .*integer, got 1.5"),
    ("soft_prompt", {"soft_token_num": 0}, "soft_token_num must be .* 1, got 0"),
    ("soft_prompt", {"init_range": 0}, "init_range must be more than 0, got 0"),
    ("soft_prompt", {"other_expand_ids": {"token_type_ids": "0"}}, "token_type_ids must be .*integer, got '0'"),
    ("soft_prompt", {"soft_token_num": 51}, "51 soft tokens .* vocabulary of 50. Use fewer, or token_init=False"),
    (
        "soft_prompt",
        {"modified_modules": ["attn"]},
        "is prepended to the text, not added to modules, so modified_modules=",
    ),
    ("adapter", {"bottleneck_dim": 0}, "bottleneck_dim must be .* 1, got 0"),
    ("adapter", {"non_linearity": "gelu_nwe"}, "non_linearity 'gelu_nwe' is unknown: choose one of .*gelu_new"),
]


@pytest.mark.parametrize(("delta_type", "options", "why"), BAD_OPTIONS)
def test_options_that_can_never_work_are_refused(delta_type, options, why):
    model = bert()

    with untouched(model), pytest.raises(ConfigError, match=why):
        AutoDeltaModel.from_config({"delta_type": delta_type, **OPTIONS[delta_type]}, model, **options)
