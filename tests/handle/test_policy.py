"""A backbone as a policy: its delta off for a block, its reference, and its tensors by the names of others."""

import copy
import threading
from functools import partial

import pytest
import torch

from deltahub import AutoDeltaModel, IA3Model, LoraModel, deltas_of, merged_copy
from deltahub.errors import ConfigError, MergeError, TargetError
from tests.backbones import bert, equal, gpt2, llama, logits_of, stir, tensors_of, train


@pytest.fixture
def policy():
    """A backbone with a frozen delta, and above it one that trains a head too."""
    backbone = bert()
    first = LoraModel(backbone, name="sft", modified_modules=["query"])
    stir(first, 1)
    delta = LoraModel(backbone, name="rl", modified_modules=["query", "value"])
    delta.freeze_module(exclude=["deltas", "classifier"])
    return backbone, first, delta


def test_a_delta_is_off_for_a_block_and_then_as_before(policy):
    backbone, _, delta = policy
    before = logits_of(backbone)
    train(backbone)
    after, trained = logits_of(backbone), [name for name, p in backbone.named_parameters() if p.requires_grad]

    with delta.off(), delta.off():
        assert torch.equal(before, logits_of(backbone))
        assert not delta.attached
    assert torch.equal(after, logits_of(backbone))
    assert trained == [name for name, p in backbone.named_parameters() if p.requires_grad]
    with pytest.raises(ZeroDivisionError), delta.off():
        raise ZeroDivisionError
    assert torch.equal(after, logits_of(backbone))


@pytest.mark.parametrize("module", [False, True], ids=["whole", "in one block"])
def test_a_delta_that_was_off_stays_off_after_a_block(policy, module):
    backbone, _, delta = policy
    stir(delta)
    delta.detach(backbone.bert.encoder.layer[0] if module else None)
    expected = logits_of(backbone)

    with delta.off():
        assert not any("deltas.rl" in name for name, _ in backbone.named_parameters())
    assert torch.equal(expected, logits_of(backbone))
    assert delta.attached is module


@pytest.mark.parametrize("module", [False, True], ids=["whole", "in one block"])
def test_a_delta_that_is_detached_in_a_block_stays_detached(policy, module):
    backbone, _, delta = policy
    stir(delta)
    block = backbone.bert.encoder.layer[0] if module else None
    with delta.off():
        delta.detach(block)
    found = logits_of(backbone)

    delta.attach()
    delta.detach(block)
    assert torch.equal(logits_of(backbone), found)


def test_a_reference_is_refused_while_its_policy_is_merged(policy):
    _, first, delta = policy
    stir(delta)
    first.detach()
    reference = delta.reference()
    expected = logits_of(reference)
    delta.merge()
    with pytest.raises(MergeError):
        logits_of(reference)
    delta.unmerge()
    assert torch.equal(expected, logits_of(reference))


def test_blocks_of_threads_overlap(policy):
    _, _, delta = policy
    entered, leave = threading.Event(), threading.Event()

    def block():
        with delta.off():
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=block)
    thread.start()
    assert entered.wait(30)
    with delta.off():
        pass
    assert not delta.attached
    leave.set()
    thread.join(30)
    assert delta.attached


def test_a_block_is_refused_where_detaching_is_and_may_remove_the_delta(policy):
    backbone, first, delta = policy
    first.detach()
    delta.merge()
    with pytest.raises(MergeError, match="'rl' is merged"), delta.off():
        pass
    assert delta.merged
    delta.unmerge()
    with delta.off():
        delta.remove()
    assert deltas_of(backbone).keys() == {first.name}
    with pytest.raises(TargetError, match="was removed"):
        delta.off()


def test_a_reference_answers_as_the_policy_without_the_delta_and_shares_its_tensors(policy):
    backbone, _, delta = policy
    before = logits_of(backbone)
    train(backbone)
    after, state = logits_of(backbone), tensors_of(backbone)
    reference = delta.reference()

    assert torch.equal(before, logits_of(reference))
    assert torch.equal(after, logits_of(backbone))
    assert not reference.training
    assert list(deltas_of(reference)) == ["sft"]
    shared = {parameter.data_ptr() for parameter in backbone.parameters()}
    own = {name for name, parameter in reference.named_parameters() if parameter.data_ptr() not in shared}
    assert own == {"classifier.weight", "classifier.bias"}
    train(backbone.train())
    backbone.eval()
    assert torch.equal(before, logits_of(reference))
    assert not torch.equal(after, logits_of(backbone))
    again = AutoDeltaModel.from_config(delta.config, reference)
    again.remove()
    backbone.load_state_dict(state, strict=False)
    assert torch.equal(after, logits_of(backbone))
    assert delta.attached
    assert {p.requires_grad for p in delta.parameters()} == {True}


def test_a_reference_of_a_model_around_the_backbone(policy):
    whole = bert()
    delta = LoraModel(whole.bert, modified_modules=["query"])
    delta.freeze_module()
    whole.classifier.requires_grad_(False)
    before = logits_of(whole)
    stir(delta)
    reference = delta.reference(whole)

    assert torch.equal(before, logits_of(reference))
    assert not torch.equal(before, logits_of(whole))
    assert not [key for module in reference.modules() for key in module.__dict__ if key.startswith("_deltahub")]


def test_a_reference_whose_tensors_train_is_refused_when_made_and_later():
    backbone = bert()
    delta = LoraModel(backbone, modified_modules=["query"])
    with pytest.raises(ConfigError, match=r"is trained, and the reference shares it.*freeze_module"):
        delta.reference()
    delta.freeze_module()
    reference = delta.reference()
    delta.freeze_module(exclude=["deltas", "classifier"])
    with pytest.raises(ConfigError, match=r"classifier\.weight is trained, and the reference shares it"):
        logits_of(reference)


def test_a_reference_is_refused_after_a_trainer_has_replaced_the_forward(policy):
    backbone, _, delta = policy
    backbone.forward = backbone.forward  # a trainer that is done leaves it
    assert delta.reference().bert is not backbone.bert
    backbone.forward = partial(backbone.forward)

    with pytest.raises(ConfigError, match="The forward of the backbone has been replaced"):
        delta.reference()


@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_tensors_under_the_names_of_the_backbone_are_those_of_a_merge(make):
    backbone = make()
    delta = LoraModel(backbone, modified_modules=["attn.q", "ff.w1"])
    delta.freeze_module()
    stir(delta)
    bare = tensors_of(make())
    tensors = dict(delta.named_tensors("merged"))

    plain = make()
    assert plain.load_state_dict(tensors, strict=False).unexpected_keys == []
    assert torch.allclose(logits_of(backbone), logits_of(plain), atol=1e-5)
    assert equal(tensors_of(merged_copy(backbone)), {**bare, **tensors})
    assert not delta.merged


def test_tensors_under_the_names_of_peft_are_those_of_its_adapter(tmp_path):
    from safetensors.torch import load_file

    backbone = llama()
    delta = LoraModel(backbone, modified_modules=["attn.q", "ff.w1"])
    delta.freeze_module(exclude=["deltas", "lm_head"])
    stir(delta)
    delta.export(tmp_path / "peft")

    saved = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert equal(dict(sorted(delta.named_tensors("peft"))), dict(sorted(saved.items())))
    assert equal(dict(delta.named_tensors()), delta.state_dict())


def test_named_tensors_are_refused_where_there_are_none(policy):
    _, _, delta = policy
    with pytest.raises(
        ConfigError, match="'gguf' is not a format of named tensors; expected 'deltahub', 'peft' or 'merged'"
    ):
        delta.named_tensors("gguf")
    with pytest.raises(ConfigError, match="'sft'"):
        delta.named_tensors("merged")
    scaled = IA3Model(bert(), modified_modules=["key"])
    scaled.detach()
    with pytest.raises(MergeError, match="is detached"):
        scaled.named_tensors("merged")


def test_a_copy_made_in_a_block_stays_off_until_its_own_handle_attaches_it(policy):
    backbone, _, delta = policy
    stir(delta)
    found = logits_of(backbone)
    with delta.off():
        bare = logits_of(backbone)
        twin = copy.deepcopy(backbone)
    assert torch.equal(logits_of(backbone), found)
    assert torch.equal(logits_of(twin), bare)
    copied = deltas_of(twin)[delta.name]
    assert not copied.attached
    copied.attach()
    assert torch.equal(logits_of(twin), found)
