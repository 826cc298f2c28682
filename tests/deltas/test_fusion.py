"""AdapterFusion attends over frozen adapters, which it keeps; fixed weights average them."""

import pytest
import torch

from deltahub import AdapterModel, AutoDeltaModel, CompacterModel, FusionModel, LoraModel
from deltahub.errors import ConfigError
from tests.backbones import bert, logits_of, stir, train, untouched

ADAPTER = {"delta_type": "adapter", "bottleneck_dim": 3}


def adapters(backbone):
    deltas = [AdapterModel(backbone, 3), CompacterModel(backbone, reduction_factor=4, hypercomplex_division=2)]
    for seed, delta in enumerate(deltas):
        stir(delta, seed)
    return deltas


def test_it_adds_the_attended_mean_of_the_updates_of_its_members():
    backbone = bert()
    deltas = adapters(backbone)
    fusion = FusionModel.of(deltas)
    stir(fusion)
    layer = fusion.insertions["bert.encoder.layer.0.output.dense"]
    hidden = torch.randn(2, 5, 16)
    with torch.no_grad():
        updates = torch.stack(
            [delta.insertions["bert.encoder.layer.0.output.dense"].update(hidden) for delta in deltas]
        )
        query, keys = layer.query(hidden), layer.key(updates)
        weights = (keys * query).sum(-1).softmax(0)
        expected = (weights[..., None] * (updates @ layer.value.T)).sum(0)
        torch.testing.assert_close(layer.update(hidden), expected)


def test_only_the_attention_trains_and_the_members_are_saved_with_it(tmp_path):
    backbone = bert()
    deltas = adapters(backbone)
    fusion = FusionModel.of(deltas)
    assert not any(delta.attached for delta in deltas)
    fusion.freeze_module()
    before = {name: tensor.clone() for name, tensor in fusion.state_dict().items()}
    train(backbone)
    changed = {
        name.rpartition(".deltas.")[2]
        for name, tensor in fusion.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed - {"key.bias"} == {
        "query.weight",
        "query.bias",
        "key.weight",
        "value",
    }  # a shift of all keys changes no softmax
    for delta in deltas:
        delta.remove()
    fusion.save_finetuned(tmp_path)
    again = bert()
    loaded = AutoDeltaModel.from_finetuned(tmp_path, backbone_model=again)
    assert torch.equal(logits_of(again), logits_of(backbone))
    assert [part["delta_type"] for part in loaded.config.parts] == ["adapter", "compacter"]


def test_fixed_weights_average_the_updates():
    backbone = bert()
    deltas = adapters(backbone)
    for delta in deltas:
        delta.detach()
    single = FusionModel.of(deltas[:1], weights=[1.0])
    alone = logits_of(backbone)
    single.remove()
    deltas[0].attach()
    torch.testing.assert_close(alone, logits_of(backbone))

    average = FusionModel.of(deltas, weights=[0.25, 0.75])
    hidden = torch.randn(1, 3, 16)
    place = "bert.encoder.layer.1.output.dense"
    with torch.no_grad():
        first, second = (delta.insertions[place].update(hidden) for delta in deltas)
        torch.testing.assert_close(average.insertions[place].update(hidden), 0.25 * first + 0.75 * second)
    assert not list(average.parameters())


@pytest.mark.parametrize(
    ("parts", "options", "why"),
    [
        ([], {}, "A fusion has no parts"),
        ([{"delta_type": "union", "parts": [ADAPTER]}], {}, "has delta_type 'union'; expected another"),
        ([{"delta_type": "lora"}], {}, "a lora does something else"),
        ([ADAPTER, {**ADAPTER, "at_input": True}], {}, "Give all the same at_input"),
        ([ADAPTER], {"weights": [0.5, 0.5]}, "has 1 parts and 2 weights"),
    ],
)
def test_members_that_cannot_be_fused_are_refused(parts, options, why):
    backbone = bert()
    with untouched(backbone), pytest.raises(ConfigError, match=why):
        FusionModel(backbone, parts, **options)


def test_members_are_on_one_backbone():
    with pytest.raises(ConfigError, match="all of them on one backbone"):
        FusionModel.of([AdapterModel(bert()), AdapterModel(bert())])
    delta = AdapterModel(bert())
    delta.scale(0.5)
    with pytest.raises(ConfigError, match="which a fusion does not keep"):
        FusionModel.of([delta])
    with pytest.raises(ConfigError, match="a lora does something else"):
        FusionModel.of([LoraModel(bert())])


def test_one_delta_is_not_fused_with_itself():
    backbone = bert()
    first, second = adapters(backbone)
    with pytest.raises(ConfigError, match=f"{first.name!r} is given twice"):
        FusionModel.of([first, second, first])
    assert first.attached
    assert second.attached
