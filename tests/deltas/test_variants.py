"""The options of the methods that change what they do: each is saved, loaded, detached, copied and compiled alike."""

import copy
import itertools
import pickle
import threading

import pytest
import torch

from deltahub import AutoDeltaModel, IA3Model, ParallelAdapterModel
from deltahub.errors import ConfigError, NoMatchError, TargetError
from tests.backbones import BACKBONES, bert, equal, forward, inputs_for, logits_of, stir, tensors_of, train, untouched
from tests.grids import ALL, pairs

COMPACTER = {"delta_type": "compacter", "reduction_factor": 4, "hypercomplex_division": 2}
VARIANTS = {
    "rslora": {"delta_type": "lora", "lora_r": 4, "use_rslora": True},
    "dora": {"delta_type": "lora", "lora_r": 2, "use_dora": True},
    "rank 3": {"delta_type": "low_rank_adapter", "reduction_factor": 4, "low_rank_rank": 3},
    "normal": {"delta_type": "low_rank_adapter", "reduction_factor": 4, "low_rank_w_init": "glorot-normal"},
    "fixed rules": {**COMPACTER, "learn_phm": False},
    "shared rules": {**COMPACTER, "shared_phm_rule": True},
    "shared fixed rules": {**COMPACTER, "shared_phm_rule": True, "learn_phm": False},
    "shared thin rules": {**COMPACTER, "shared_phm_rule": True, "factorized_phm_rule": True},
    "shared weights": {**COMPACTER, "shared_W_phm": True},
    "all shared": {**COMPACTER, "shared_W_phm": True, "shared_phm_rule": True, "phm_c_init": "uniform"},
    "whole weights": {**COMPACTER, "factorized_phm": False, "hypercomplex_nonlinearity": "normal"},
    "rank 2, no biases": {**COMPACTER, "phm_rank": 2, "use_bias_up_sampler": False, "use_bias_down_sampler": False},
    "scaled": {"delta_type": "parallel_adapter", "bottleneck_dim": 3, "scaled": 4.0},
    "stretch": {"delta_type": "parallel_adapter", "bottleneck_dim": 3, "modified_modules": ["ff.w1", "ff.w2"]},
}


# Types meet every backbone in test_contract.py; an option means the same on all, so it meets two.
@pytest.mark.parametrize(("variant", "backbone"), pairs(VARIANTS, sorted(BACKBONES), always=["bert"]))
def test_an_option_is_saved_loaded_and_detached_bit_for_bit(variant, backbone, tmp_path):
    model, fresh = BACKBONES[backbone](), BACKBONES[backbone]()
    before, state = logits_of(model), tensors_of(model)
    delta = AutoDeltaModel.from_config(VARIANTS[variant], model)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path)
    loaded = AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)

    assert not torch.equal(before, logits_of(model))
    assert torch.equal(logits_of(model), logits_of(fresh))
    assert equal(delta.state_dict(), loaded.state_dict())
    delta.detach()
    assert torch.equal(before, logits_of(model))
    assert equal(state, tensors_of(model))


@pytest.mark.parametrize("variant", VARIANTS)
class TestVariants:
    def test_gradients_reach_every_parameter(self, variant):
        backbone = bert()
        delta = AutoDeltaModel.from_config(VARIANTS[variant], backbone)
        delta.freeze_module()
        stir(delta)
        forward(backbone).square().mean().backward()

        assert [name for name, parameter in delta.named_parameters() if not parameter.grad.any()] == []

    def test_copies_and_pickles_have_tensors_of_their_own(self, variant):
        backbone = bert()
        delta = AutoDeltaModel.from_config(VARIANTS[variant], backbone)
        stir(delta)
        twins = copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))
        expected = logits_of(backbone)
        stir(delta, 7)

        assert not torch.equal(expected, logits_of(backbone))
        for twin in twins:
            assert torch.equal(expected, logits_of(twin))
            assert len(list(twin.parameters())) == len(list(backbone.parameters()))


GROUPS = [[name] for name in VARIANTS] if ALL else [list(VARIANTS)[place::2] for place in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_options_compile_without_a_break(names):
    backbone = bert(num_hidden_layers=1)
    block, states = backbone.bert.encoder.layer[0], torch.randn(2, 5, 16)  # whole backbones: the tests of training
    seen = [block(states)]
    for name in names:
        stir(AutoDeltaModel.from_config(VARIANTS[name], backbone))
        seen.append(block(states))
    compiled = torch.compile(block, backend="eager", fullgraph=True)

    with torch.no_grad():
        assert torch.allclose(seen[-1], compiled(states), atol=1e-5)
    assert not any(torch.allclose(one, other, atol=1e-5) for one, other in itertools.pairwise(seen))


def test_weights_are_shared_only_by_modules_of_one_width():
    backbone = bert()
    options = {**VARIANTS["shared weights"], "modified_modules": ["intermediate.dense", "output.dense"]}

    with untouched(backbone), pytest.raises(ConfigError, match="shared_W_phm needs modules of one width"):
        AutoDeltaModel.from_config(options, backbone)


def test_shared_rules_are_saved_once():
    backbone = bert()
    delta = AutoDeltaModel.from_config(VARIANTS["all shared"], backbone)
    names = [name.rpartition(".")[2] for name in delta.state_dict()]

    assert names.count("phm_rule") == 1
    assert names.count("W_left") == 2  # one set for the ways down, one for the ways up


def test_fixed_rules_are_saved_but_never_trained():
    backbone = bert()
    delta = AutoDeltaModel.from_config(VARIANTS["fixed rules"], backbone)
    delta.freeze_module()
    before = {name: tensor.clone() for name, tensor in delta.state_dict().items() if "phm_rule" in name}
    train(backbone, steps=2)

    assert before
    assert all(torch.equal(tensor, delta.state_dict()[name]) for name, tensor in before.items())


def test_the_inputs_that_ia3_rescales_are_addressed_apart():
    backbone = bert()
    delta = IA3Model(
        backbone, modified_modules=["key", "intermediate.dense"], feedforward_modules=["intermediate.dense"]
    )
    widths = {name.rpartition("layer.0.")[2]: p.numel() for name, p in delta.named_parameters() if "layer.0" in name}

    assert widths == {"attention.self.key.deltas.ia3_l": 16, "intermediate.dense.deltas.ia3_l": 16}  # its input's width
    with untouched(backbone), pytest.raises(NoMatchError, match="No module matches 'w9'"):
        IA3Model(backbone, feedforward_modules=["w9"])


class TestStretches:
    def test_the_modules_of_a_pair_take_turns(self):
        backbone = bert()

        with (
            untouched(backbone),
            pytest.raises(TargetError, match=r"'key' means 2 modules and 'dense' means .*take turns"),
        ):
            ParallelAdapterModel(backbone, modified_modules=["key", "dense"])

    def test_a_module_belongs_to_one_pair(self):
        backbone = bert()
        twice = ["query", "query", "query", "value"]

        with untouched(backbone), pytest.raises(ConfigError, match=r"query .*is meant twice"):
            ParallelAdapterModel(backbone, modified_modules=twice)

    def test_an_adapter_parallel_to_two_modules_follows_its_formula(self):
        backbone = bert()
        layer = backbone.bert.encoder.layer[0]
        delta = ParallelAdapterModel(
            backbone, 3, "relu", ["[r]layer.0.intermediate", "[r]layer.0.output.dense"], scaled=2.0
        )
        stir(delta)
        x, w = torch.randn(2, 5, 16), delta.insertions["bert.encoder.layer.0.intermediate"]
        inner = layer.intermediate(x)
        found = layer.output.dense(inner)
        delta.detach()

        update = w.up_proj(torch.relu(w.down_proj(x)))
        assert torch.allclose(layer.output.dense(inner) + 2.0 * update, found, atol=1e-5)


def stretched(backbone):
    """A parallel adapter from one layer to the next, with values of its own."""
    delta = ParallelAdapterModel(backbone, bottleneck_dim=3, modified_modules=["ff.w1", "ff.w2"])
    delta.freeze_module()
    stir(delta)
    return delta


@pytest.mark.parametrize("remake", [lambda model: model, copy.deepcopy], ids=["model", "copy"])
def test_a_call_in_another_thread_meanwhile_does_not_change_a_stretch(remake):
    backbone = bert()
    stretched(backbone)
    backbone = remake(backbone)
    inputs = inputs_for(backbone)
    others = {name: tensor[:1, :4] for name, tensor in inputs.items()}
    expected = [logits_of(backbone), backbone(**others).logits]
    found = []

    def call_in_another_thread(*_):
        hook.remove()
        thread = threading.Thread(target=lambda: found.append(backbone(**others).logits))
        thread.start()
        thread.join(60)

    hook = backbone.bert.encoder.layer[1].output.dense.register_forward_pre_hook(call_in_another_thread)
    found.insert(0, logits_of(backbone))

    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_a_stretch_that_ends_without_its_start_or_on_other_tokens_is_an_error():
    backbone = bert()
    stretched(backbone)
    layer = backbone.bert.encoder.layer[0]

    with pytest.raises(TargetError, match="reached at its second module without its first"):
        layer.output.dense(torch.ones(2, 24))
    layer.intermediate.dense(torch.ones(2, 16))
    with pytest.raises(TargetError, match=r"made \[2, 16\] at its first module, and its second returns \[1, 16\]"):
        layer.output.dense(torch.ones(1, 24))
