"""What every delta type must do. A new type is picked up when it is registered; give it a line in the tables below."""

import copy
import io
import pickle

import pytest
import torch

import deltahub.deltas  # noqa: F401  (registers the types)
from deltahub import AutoDeltaModel, deltas_of
from deltahub.engine.site import is_delta_name
from deltahub.errors import ConfigError
from deltahub.handle.base import delta_classes
from tests.backbones import BACKBONES, bert, equal, forward, logits_of, stir, tensors_of, train, untouched

TYPES = sorted(delta_classes())
OPTIONS = {  # small; others take their defaults
    "lora": {"lora_r": 2},
    "adapter": {"bottleneck_dim": 3},
    "parallel_adapter": {"bottleneck_dim": 3},
    "low_rank_adapter": {"reduction_factor": 4},
    "compacter": {"reduction_factor": 4, "hypercomplex_division": 2},
    "prefix": {"prefix_token_num": 3, "embed_dim": 4, "mid_dim": 5},
    "soft_prompt": {"soft_token_num": 3},
}
UNSUITED = {("soft_prompt", "vit"): "takes no text"}
EXACT_AT_START = {"lora", "bitfit", "ia3", "layer_norm"}
NEARLY_AT_START = {"adapter": 0.05, "parallel_adapter": 0.05, "compacter": 0.5}  # largest change of a logit
# Parameters of the delta on one BERT with its defaults: 2 layers, width 16, feed-forward width 24.
COUNTS = {
    "lora": 2 * 2 * (2 * 16 + 16 * 2),  # layers * (q, v) * (A + B)
    "adapter": 2 * 2 * (16 * 3 + 3 + 3 * 16 + 16),  # layers * (attention, feed-forward) * (down + up)
    "parallel_adapter": 2 * 2 * (16 * 3 + 3 + 3 * 16 + 16),  # the same beside both
    "low_rank_adapter": 2 * 2 * (16 + 4 + 4 + 4 + 16 + 16),  # layers * 2 * (left, right, bias of both ways)
    "compacter": 2
    * 2
    * (2 * 2**3 + 2 * (8 + 2) + 4 + 2 * (2 + 8) + 16),  # layers * 2 * (rules, down + bias, up + bias)
    "ia3": 2 * (16 + 16 + 24),  # layers * (k, v, inner feed-forward)
    "layer_norm": 2 * 2 * 2 * 16,  # layers * 2 * (scale, shift)
    "bitfit": 2 * (4 * 16 + 16 + 24 + 16 + 16),  # layers * (q, k, v, proj + norm + w1 + w2 + norm)
    "prefix": 3 * 4 + 4 * 5 + 5 + (5 + 1) * (2 * 2 * 16),  # places + middle + layers * (keys, values)
    "soft_prompt": 3 * 16,  # tokens * width
}
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


def make(delta_type, backbone, **options):
    """A fresh delta of a type on a backbone."""
    return AutoDeltaModel.from_config({"delta_type": delta_type, **OPTIONS.get(delta_type, {})}, backbone, **options)


def trained(delta_type, backbone):
    """A delta that has moved away from its start."""
    delta = make(delta_type, backbone)
    delta.freeze_module()
    stir(delta)
    return delta


@pytest.fixture(params=sorted(BACKBONES))
def backbone(request):
    if why := UNSUITED.get((request.node.callspec.params["delta_type"], request.param)):
        pytest.skip(f"a {request.param} {why}")
    return BACKBONES[request.param]()


@pytest.mark.parametrize("delta_type", TYPES)
class TestContract:
    def test_it_starts_as_the_identity_where_its_method_says_so(self, delta_type, backbone):
        expected = logits_of(backbone)
        make(delta_type, backbone)

        if delta_type in EXACT_AT_START:
            assert torch.equal(expected, logits_of(backbone))
        elif delta_type in NEARLY_AT_START:
            change = (expected - logits_of(backbone)).abs().max()
            assert 0 < change < NEARLY_AT_START[delta_type]

    def test_training_moves_it_and_nothing_else(self, delta_type, backbone):
        delta = make(delta_type, backbone)
        delta.freeze_module()
        before, own = logits_of(backbone), {name: p.detach().clone() for name, p in delta.named_parameters()}
        base = {name: p.detach().clone() for name, p in backbone.named_parameters() if not is_delta_name(name)}
        train(backbone)

        assert not torch.equal(before, logits_of(backbone))
        assert any(not torch.equal(own[name], p) for name, p in delta.named_parameters())
        assert all(torch.equal(tensor, backbone.get_parameter(name)) for name, tensor in base.items())

    def test_gradients_reach_its_parameters_and_nothing_else(self, delta_type, backbone):
        delta = trained(delta_type, backbone)
        forward(backbone).square().mean().backward()

        with_gradient = {id(p) for p in backbone.parameters() if p.grad is not None}
        assert with_gradient == {id(parameter) for parameter in delta.parameters()}

    def test_detaching_restores_the_backbone_exactly(self, delta_type, backbone):
        logits, tensors = logits_of(backbone), tensors_of(backbone)
        names = [name for name, _ in backbone.named_parameters()]
        delta = trained(delta_type, backbone)
        changed = logits_of(backbone)
        delta.detach()

        assert not torch.equal(logits, changed)
        assert torch.equal(logits, logits_of(backbone))
        assert equal(tensors, tensors_of(backbone))
        assert names == [name for name, _ in backbone.named_parameters()]
        delta.attach()
        assert torch.equal(changed, logits_of(backbone))

    def test_the_backbone_keeps_its_own_keys(self, delta_type, backbone):
        expected = list(backbone.state_dict())
        make(delta_type, backbone)

        assert expected == [name for name in backbone.state_dict() if not is_delta_name(name)]

    def test_it_is_saved_and_loaded_bit_for_bit(self, delta_type, backbone, tmp_path):
        fresh = copy.deepcopy(backbone)
        delta = trained(delta_type, backbone)
        delta.save_finetuned(tmp_path)
        loaded = AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)

        assert type(delta) is type(loaded)
        assert torch.equal(logits_of(backbone), logits_of(fresh))
        assert equal(delta.state_dict(), loaded.state_dict())

    def test_it_can_be_saved_from_what_was_loaded_and_detached(self, delta_type, tmp_path):
        backbone = bert()
        trained(delta_type, backbone).save_finetuned(tmp_path / "first")
        again, last = bert(), bert()
        delta = AutoDeltaModel.from_finetuned(tmp_path / "first", backbone_model=again)
        delta.detach()
        delta.save_finetuned(tmp_path / "second")
        AutoDeltaModel.from_finetuned(tmp_path / "second", backbone_model=last)

        assert torch.equal(logits_of(backbone), logits_of(last))
        files = [(tmp_path / name / "delta.safetensors").read_bytes() for name in ("first", "second")]
        assert files[0] == files[1]

    def test_a_copy_has_parameters_of_its_own(self, delta_type):
        backbone = bert()
        trained(delta_type, backbone)
        expected = logits_of(backbone)
        twin = copy.deepcopy(backbone)
        assert torch.equal(expected, logits_of(twin))

        stir(deltas_of(twin)[delta_type], 9)
        assert torch.equal(expected, logits_of(backbone))
        assert not torch.equal(expected, logits_of(twin))

    def test_it_pickles_with_its_backbone(self, delta_type):
        backbone = bert()
        trained(delta_type, backbone)
        whole = io.BytesIO()
        torch.save(backbone, whole)
        whole.seek(0)

        for twin in (pickle.loads(pickle.dumps(backbone)), torch.load(whole, weights_only=False)):
            assert torch.equal(logits_of(backbone), logits_of(twin))
            deltas_of(twin)[delta_type].detach()
            assert torch.equal(logits_of(bert()), logits_of(twin))

    def test_its_parameters_are_as_many_as_its_formula_says(self, delta_type):
        delta = make(delta_type, bert())

        assert sum(parameter.numel() for parameter in delta.parameters()) == COUNTS[delta_type]
        assert delta.get_statistics()["delta_parameters"] == COUNTS[delta_type]

    def test_it_is_in_float32_on_a_backbone_in_half_precision_whose_outputs_stay_so(
        self, delta_type, backbone, tmp_path
    ):
        backbone = backbone.bfloat16()
        fresh = copy.deepcopy(backbone)
        delta = trained(delta_type, backbone)
        assert {parameter.dtype for parameter in delta.parameters()} == {torch.float32}
        forward(backbone).float().square().mean().backward()

        delta.save_finetuned(tmp_path)
        AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)
        assert logits_of(backbone).dtype == torch.bfloat16
        assert torch.equal(logits_of(backbone), logits_of(fresh))

    def test_it_may_have_a_precision_of_its_own(self, delta_type):
        backbone = bert().bfloat16()
        delta = trained(delta_type, backbone)
        for insertion in delta.insertions.values():
            insertion.bfloat16()

        assert logits_of(backbone).dtype == torch.bfloat16

    def test_unknown_options_are_refused(self, delta_type):
        model = bert()

        with untouched(model), pytest.raises(ConfigError, match=f"{delta_type} has no option 'modified_module'"):
            make(delta_type, model, modified_module=["query"])

    def test_making_it_twice_gives_two(self, delta_type):
        model = bert()
        names = [make(delta_type, model).name for _ in range(2)]

        assert names == [delta_type, f"{delta_type}_1"]

    def test_it_tells_where_it_sits(self, delta_type, backbone):
        delta = make(delta_type, backbone)
        modules = dict(backbone.named_modules())

        assert delta.insertions
        assert set(delta.insertions) <= set(modules)
        assert all(name.rpartition(".deltas.")[0] in delta.insertions for name, _ in delta.named_parameters())


@pytest.mark.parametrize(("delta_type", "options", "why"), BAD_OPTIONS)
def test_options_that_can_never_work_are_refused(delta_type, options, why):
    model = bert()

    with untouched(model), pytest.raises(ConfigError, match=why):
        make(delta_type, model, **options)


def test_the_tables_know_every_type():
    assert set(TYPES) == set(COUNTS)
