"""Deltas that are loaded and removed: what is left of them, and what another that trains meanwhile notices of it."""

import copy

import pytest
import torch
from torch import nn

from deltahub import AdapterModel, AutoDeltaModel, BitFitModel, deltas_of
from deltahub.engine.site import is_delta_name
from tests.backbones import bert, equal, gpt2, inputs_for, logits_of, stir, train, untouched
from tests.engine.crowds import TYPES, crowd, put_on

# ----- loading and removing -----


def saved(folder, kind, seed):
    """Save a delta with a head of its own; returns the logits of its backbone."""
    backbone = bert()
    delta = put_on(backbone, kind, "delta", seed, train=("deltas", "classifier"))
    train(backbone, seed + 1)
    delta.save_finetuned(folder)
    return logits_of(backbone)


def test_several_checkpoints_live_on_one_backbone_under_names_of_their_own(tmp_path):
    expected = {
        name: saved(tmp_path / name, name.split("_")[0], seed) for seed, name in enumerate(("lora", "lora_1", "ia3"))
    }
    backbone = bert()
    bare = logits_of(backbone)
    names = [AutoDeltaModel.from_finetuned(tmp_path / name, backbone).name for name in expected]
    named = AutoDeltaModel.from_finetuned(tmp_path / "lora", backbone, name="champion")

    assert [*names, named.name] == ["lora", "lora_1", "ia3", "champion"] == list(deltas_of(backbone))
    for delta in deltas_of(backbone).values():
        delta.detach()
    assert torch.equal(bare, logits_of(backbone))
    for name, delta in deltas_of(backbone).items():
        delta.attach()
        assert torch.equal(expected["lora" if name == "champion" else name], logits_of(backbone))
        delta.detach()


@pytest.mark.parametrize("make", [bert, gpt2], ids=lambda make: make.__name__)
def test_removing_every_delta_leaves_no_trace(make):
    backbone = make()
    backbone.get_input_embeddings().weight.requires_grad_(False)  # a flag of the user's own

    with untouched(backbone):
        deltas = crowd(backbone)
        deltas["adapter"].freeze_module(exclude=["deltas", "ln_f" if make is gpt2 else "classifier"])
        train(backbone)
        for name in sorted(deltas, key=lambda name: name[::-1]):
            deltas[name].remove()
    assert deltas_of(backbone) == {}


def test_removing_a_loaded_delta_restores_the_trainable_parameters(tmp_path):
    saved(tmp_path, "lora", 0)
    backbone = bert()
    backbone.requires_grad_(False)
    backbone.bert.embeddings.requires_grad_(True)

    with untouched(backbone):
        AutoDeltaModel.from_finetuned(tmp_path, backbone).remove()


def test_removing_one_leaves_the_others_as_they_were():
    backbone = bert()
    deltas = crowd(backbone)
    deltas["lora"].detach()
    without = logits_of(backbone)
    deltas["lora"].attach()
    deltas["lora"].remove()

    assert torch.equal(without, logits_of(backbone))
    assert not [name for name in backbone.state_dict() if ".deltas.lora." in name]
    assert list(deltas_of(backbone)) == [name for name in TYPES if name != "lora"]


def losses(backbone, optimizer, steps):
    """The loss of some steps in training mode."""
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = backbone(**inputs_for(backbone), labels=torch.tensor([0, 2])).loss
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def in_training(backbone):
    """An adapter with a head of its own that trains with Adam, whose state goes on from step to step."""
    delta = AdapterModel(backbone, bottleneck_dim=3)
    delta.freeze_module(exclude=["deltas", "classifier"])
    stir(delta)
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return delta, torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=0.01)


def test_a_delta_trains_as_if_alone_while_others_come_and_go(tmp_path):
    saved(tmp_path, "lora", 0)
    alone, backbone = bert(), bert()
    expected = losses(alone, in_training(alone)[1], 9)
    delta, optimizer = in_training(backbone)

    found = losses(backbone, optimizer, 2)
    loaded = AutoDeltaModel.from_finetuned(tmp_path, backbone)
    loaded.detach()
    found += losses(backbone, optimizer, 2)
    with torch.no_grad():
        loaded.attach()
        logits_of(backbone)  # a look at the other in between
        loaded.detach()
    found += losses(backbone, optimizer, 2)
    other = BitFitModel(backbone)
    other.detach()
    loaded.remove()
    found += losses(backbone, optimizer, 2)
    other.remove()
    found += losses(backbone, optimizer, 1)

    assert expected == found
    assert len(set(found)) == 9
    assert equal(deltas_of(alone)["adapter"].state_dict(), delta.state_dict())


@pytest.mark.parametrize("kind", ["lora", "bitfit", "ia3", "layer_norm"])
def test_adding_and_removing_a_delta_touches_nothing_of_one_that_trains(tmp_path, kind):
    saved(tmp_path, kind, 0)
    backbone = bert()
    _, optimizer = in_training(backbone)
    losses(backbone, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}

    with untouched(backbone):
        added = AutoDeltaModel.from_finetuned(tmp_path, backbone)
        assert backbone.training
        assert all(module.training for name, module in backbone.named_modules() if is_delta_name(name))
        added.detach()
        added.attach()
        added.remove()
    assert gradients.keys() == {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert all(torch.equal(gradient, backbone.get_parameter(name).grad) for name, gradient in gradients.items())
    assert str(state) == str(optimizer.state_dict())
