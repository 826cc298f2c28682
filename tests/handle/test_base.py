import copy
from collections import Counter

import pytest
import torch
from torch import nn

from deltahub import AdapterModel, AutoDeltaModel, BitFitModel, LoraConfig, LoraModel, SaveLoadMixin, deltas_of
from deltahub.engine.structure.maps import NameTree
from deltahub.errors import ConfigError, NoMatchError, TargetError
from deltahub.handle.base import DeltaBase
from tests.backbones import bert, equal, gpt2, logits_of, stir, t5, tensors_of, untouched


def three(backbone):
    """A delta of each type, all of them doing something."""
    deltas = [
        LoraModel(backbone, modified_modules=["attn.q", "attn.v"]),
        AdapterModel(backbone, bottleneck_dim=3, modified_modules=["attn.proj", "ff.w2"]),
        BitFitModel(backbone, modified_modules=["attn.q", "ff.w2"]),
    ]
    for seed, delta in enumerate(deltas):
        stir(delta, seed)
    return deltas


class Children(dict):
    """The children of a module, which count how often all of them are visited."""

    visits = 0

    def items(self):
        self.visits += 1
        return super().items()


@pytest.fixture
def walked():
    """A backbone whose children count the walks over its modules."""
    backbone = bert()
    backbone._modules = Children(backbone._modules)
    return backbone


@pytest.mark.parametrize("options", [{}, {"modified_modules": ["query"]}, {"name": "mine"}], ids=str)
def test_attaching_walks_the_modules_once_for_their_state_and_once_for_their_names(walked, options):
    LoraModel(walked, **options)

    assert walked._modules.visits == 2


def test_loading_walks_the_modules_no_more_often_than_attaching(walked, tmp_path):
    delta = LoraModel(bert())
    delta.freeze_module()
    delta.save_finetuned(tmp_path)

    AutoDeltaModel.from_finetuned(tmp_path, walked.eval(), check_hash=False)

    assert walked._modules.visits == 3  # `eval` visited them, too


def test_each_module_is_looked_up_once_in_the_map_of_its_family(monkeypatch):
    paths, deepest = Counter(), NameTree.deepest
    monkeypatch.setattr(NameTree, "deepest", lambda tree, path: paths.update([(id(tree), path)]) or deepest(tree, path))

    LoraModel(bert())  # by two common names

    assert set(paths.values()) == {1}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
@pytest.mark.parametrize("make", [bert, gpt2, t5])
def test_detaching_in_any_order_restores_the_backbone_exactly(make, order):
    backbone = make()
    logits, tensors = logits_of(backbone), tensors_of(backbone)
    names = [name for name, _ in backbone.named_parameters()]
    deltas = three(backbone)

    for index in order:
        assert not torch.equal(logits, logits_of(backbone))
        deltas[index].detach()

    assert torch.equal(logits, logits_of(backbone))
    assert equal(tensors, tensors_of(backbone))
    assert names == [name for name, _ in backbone.named_parameters()]


@pytest.mark.parametrize("off", [(0,), (1,), (0, 2), (2, 1, 0)])
def test_a_delta_that_comes_back_acts_in_its_old_place(off):
    backbone = bert()
    deltas = three(backbone)
    expected = logits_of(backbone)

    for index in off:
        deltas[index].detach()
    for index in off:
        deltas[index].attach()

    assert torch.equal(expected, logits_of(backbone))


def test_the_deltas_that_stay_act_as_if_the_others_had_never_been():
    alone, crowded = bert(), bert()
    stir(AdapterModel(alone, bottleneck_dim=3, modified_modules=["attn.proj", "ff.w2"]), 1)
    lora, _, bitfit = three(crowded)
    lora.detach()
    bitfit.detach()

    assert torch.equal(logits_of(alone), logits_of(crowded))


def test_a_delta_that_is_off_is_not_in_the_module_tree():
    backbone = bert()
    delta = LoraModel(backbone)
    own = [id(parameter) for parameter in delta.parameters()]
    delta.detach()

    assert not set(own) & {id(parameter) for parameter in backbone.parameters()}
    assert not [name for name in backbone.state_dict() if "lora" in name]
    assert own == [id(parameter) for parameter in delta.parameters()]
    assert not delta.attached


def test_only_a_part_can_be_detached():
    backbone = bert()
    delta = LoraModel(backbone)
    stir(delta)
    only_second = bert()
    stir(LoraModel(only_second))
    expected = logits_of(only_second)
    for name, parameter in only_second.named_parameters():
        if "layer.0" in name and "lora" in name:
            nn.init.zeros_(parameter)

    delta.detach(module=backbone.bert.encoder.layer[0])
    assert torch.equal(logits_of(only_second), logits_of(backbone))
    delta.attach(module=backbone.bert.encoder.layer[0])
    assert torch.equal(expected, logits_of(backbone))


def test_a_delta_that_comes_back_goes_to_where_its_backbone_is_now():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.detach()
    backbone.to("meta").train()
    delta.attach()

    assert all(parameter.is_meta for parameter in delta.parameters())
    assert all(insertion.training for insertion in delta.insertions.values())


def test_several_deltas_of_one_type_are_numbered():
    backbone = bert()
    deltas = [LoraModel(backbone) for _ in range(3)]

    assert [delta.name for delta in deltas] == ["lora", "lora_1", "lora_2"]
    assert list(deltas_of(backbone)) == ["lora", "lora_1", "lora_2"]
    deltas[1].detach()
    assert LoraModel(backbone).name == "lora_3"  # a delta that is off keeps its name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mine", "A delta called 'mine' is on this backbone already; choose another name"),
        ("a b", "use letters"),
        ("1", "use letters"),
    ],
)
def test_a_name_that_is_taken_or_malformed_is_refused(name, why):
    backbone = bert()
    AdapterModel(backbone, name="mine")

    with untouched(backbone), pytest.raises(ConfigError, match=why):
        AutoDeltaModel.from_config({"delta_type": "lora"}, backbone, name=name)


def test_a_malformed_name_leaves_a_bare_backbone_bare():
    backbone = bert()

    with untouched(backbone), pytest.raises(ConfigError):
        LoraModel(backbone, name="a.b")


def test_a_second_delta_does_not_match_what_is_inside_the_first():
    backbone = bert()
    AdapterModel(backbone, modified_modules=["ff.w2"])

    with untouched(backbone), pytest.raises(NoMatchError):
        LoraModel(backbone, modified_modules=["down_proj"])
    lora = LoraModel(backbone, modified_modules=["[r].*output\\.dense"])
    assert not [name for name in lora.insertions if "deltas" in name]
    bitfit = BitFitModel(backbone, modified_modules=["0.output"])
    assert list(bitfit.insertions) == [f"bert.encoder.layer.0.output.{name}" for name in ("dense", "LayerNorm")]


def test_a_container_is_refused_and_its_child_named():
    backbone = bert()

    with untouched(backbone), pytest.raises(TargetError) as caught:
        AdapterModel(backbone, modified_modules=["encoder.layer"])

    assert "bert.encoder.layer is a ModuleList" in str(caught.value)
    assert "Address bert.encoder.layer.0 instead" in str(caught.value)


def test_a_delta_has_no_forward():
    with pytest.raises(RuntimeError, match="Call the backbone model instead"):
        LoraModel(bert())(torch.ones(1))


def test_the_handles_of_a_copy_belong_to_the_copy():
    backbone = bert()
    lora, *_ = three(backbone)
    expected = logits_of(backbone)
    twin = copy.deepcopy(backbone)
    for delta in deltas_of(twin).values():
        delta.detach()

    assert [type(delta) for delta in deltas_of(twin).values()] == [LoraModel, AdapterModel, BitFitModel]
    assert torch.equal(expected, logits_of(backbone))
    assert lora.attached
    assert deltas_of(nn.Linear(1, 1)) == {}


def test_the_state_dict_of_a_delta_does_not_depend_on_its_name():
    first, second = LoraModel(bert(), name="x"), LoraModel(bert(), name="y")

    assert list(first.state_dict()) == list(second.state_dict())
    assert all(name.endswith((".deltas.lora_A", ".deltas.lora_B")) for name in first.state_dict() if "deltas" in name)


def test_a_method_of_ones_own_needs_only_a_config_and_an_insertion():
    from deltahub.deltas.bitfit import BiasOffset

    class Shift(DeltaBase):
        config_class = LoraConfig

        @classmethod
        def new_insertion(cls, config, target, width, like):
            return BiasOffset(like, width)

    backbone = bert()
    delta = Shift(backbone, LoraConfig(modified_modules=["query"]), name="shift")
    stir(delta)
    assert [name for name, _ in delta.named_parameters()] == [
        f"bert.encoder.layer.{i}.attention.self.query.deltas.bias" for i in (0, 1)
    ]


def test_the_state_of_a_delta_is_saved_and_restored_without_its_handle(tmp_path):
    backbone = bert()
    delta = LoraModel(backbone)
    delta.freeze_module()
    stir(delta)
    state = SaveLoadMixin(backbone, delta._entry)
    state.save_finetuned(tmp_path / "delta")
    kept = {name: tensor.clone() for name, tensor in state.state_dict().items()}
    stir(delta, 3)
    state.load_checkpoint(tmp_path / "delta" / "delta.safetensors")

    assert isinstance(delta, SaveLoadMixin)
    assert equal(kept, delta.state_dict())
    assert torch.equal(
        logits_of(backbone), logits_of(LoraModel.from_finetuned(tmp_path / "delta", bert()).backbone_model)
    )
