"""What becomes of a delta whose backbone has no room for it, or is changed under it."""

import copy

import pytest
import torch
from torch import nn

from deltahub import AutoDeltaModel, LoraModel
from deltahub.engine.filling import fill
from deltahub.errors import ConfigError, TargetError
from tests.backbones import bert, equal, stir, tensors_of


@pytest.mark.parametrize("own", [nn.Linear(2, 2), nn.Parameter(torch.ones(2)), 3])
def test_a_module_with_deltas_of_its_own_is_refused_untouched(own):
    backbone = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    backbone["second"].deltas = own

    with pytest.raises(TargetError, match="second has an attribute 'deltas' of its own"):
        LoraModel(backbone, modified_modules=["first", "second"])
    assert backbone["second"].deltas is own
    assert not hasattr(backbone["first"], "deltas")


def test_a_part_of_the_backbone_called_deltas_is_never_taken_for_one():
    backbone = nn.ModuleDict({"deltas": nn.Linear(2, 2), "head": nn.Linear(2, 2)})

    with pytest.raises(TargetError, match="The backbone has an attribute 'deltas'"):
        LoraModel(backbone, modified_modules=["head"])


def test_a_delta_whose_target_was_replaced_is_not_saved_as_if_it_acted(tmp_path):
    backbone = bert()
    delta = LoraModel(backbone)
    delta.freeze_module()
    backbone.bert.encoder.layer[0].attention.self.query = nn.Linear(16, 16)

    for act in (delta.detach, lambda: delta.save_finetuned(tmp_path / "delta")):
        with pytest.raises(TargetError, match=r"layer\.0\.attention\.self\.query was replaced after the delta 'lora'"):
            act()
    assert not (tmp_path / "delta").exists()
    assert delta.attached


def test_a_head_of_another_shape_is_refused_before_anything_comes_off():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.freeze_module(exclude=["deltas", "classifier"])
    stir(delta)
    hidden = backbone.bert(torch.tensor([[1, 2]]))[0]
    backbone.classifier = nn.Linear(16, 5)

    with pytest.raises(TargetError, match=r"classifier\.\w+ is \[5\], and was \[3\]|classifier\.weight is \[5, 16\]"):
        delta.detach()
    assert torch.equal(hidden, backbone.bert(torch.tensor([[1, 2]]))[0])


def test_a_detached_delta_takes_no_part_of_the_backbone_to_train():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.detach()
    trained = [parameter.requires_grad for parameter in backbone.parameters()]

    with pytest.raises(ConfigError, match=r"'lora' is detached.*attach\(\) it first"):
        delta.freeze_module(exclude=["deltas", "classifier"])
    assert trained == [parameter.requires_grad for parameter in backbone.parameters()]


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_a_wrapper_is_refused_and_what_is_inside_it_is_named(wrap, tmp_path):
    backbone = bert()
    delta = LoraModel(copy.deepcopy(backbone))
    delta.freeze_module()
    delta.save_finetuned(tmp_path)
    wrapper = wrap(backbone)

    for act in (lambda: LoraModel(wrapper), lambda: AutoDeltaModel.from_finetuned(tmp_path, backbone_model=wrapper)):
        with pytest.raises(ConfigError, match=r"pass backbone_model=model\.(_orig_mod|module)\."):
            act()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # called by peft
@pytest.mark.parametrize("how", ["wrapped", "inside the wrapper", "prompt"])
def test_a_model_that_peft_has_changed_is_refused(how, tmp_path):
    import peft

    delta = LoraModel(bert())
    stir(delta)
    delta.save_finetuned(tmp_path)
    config = peft.LoraConfig(target_modules=["query"], r=2)
    if how == "prompt":
        config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    model = bert()
    wrapper = peft.get_peft_model(model, config)
    backbone = model if how == "inside the wrapper" else wrapper
    names = [name for name, _ in backbone.named_modules()]

    for act in (lambda: LoraModel(backbone), lambda: AutoDeltaModel.from_finetuned(tmp_path, backbone_model=backbone)):
        with pytest.raises(
            ConfigError, match=r"of PEFT.*load its folder with AutoDeltaModel.from_finetuned.*unload\(\)"
        ):
            act()
    assert names == [name for name, _ in backbone.named_modules()]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_a_delta_under_an_adapter_of_peft_is_saved_once_that_is_taken_out(tmp_path):
    import peft

    backbone = bert()
    delta = LoraModel(backbone, modified_modules=["query", "value"])
    delta.freeze_module()
    stir(delta)
    expected = delta.state_dict()
    wrapper = peft.get_peft_model(backbone, peft.LoraConfig(target_modules=["query"], r=2))

    with pytest.raises(ConfigError, match=r"query is a Linear of PEFT"):
        delta.save_finetuned(tmp_path / "delta")
    assert not (tmp_path / "delta").exists()
    wrapper.unload()
    delta.save_finetuned(tmp_path / "delta")
    assert equal(expected, AutoDeltaModel.from_finetuned(tmp_path / "delta", bert()).state_dict())


@pytest.mark.parametrize("through", ["wrapper", "function", "itself"])
def test_a_compiled_backbone_sees_a_delta_added_later(through, caplog):
    backbone, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 4)
    if through == "itself":
        backbone.compile(backend="eager")
    called = backbone if through != "function" else lambda x: backbone(x) + 0
    compiled = backbone if through == "itself" else torch.compile(called, backend="eager")
    with torch.no_grad():
        before = compiled(x)
        delta = LoraModel(backbone, modified_modules=["0", "2"])
        stir(delta)

        found = compiled(x)
        assert not torch.allclose(before, found, atol=1e-3)
        assert torch.allclose(found, backbone._call_impl(x), atol=1e-6)
        assert "deltahub" not in {record.name for record in caplog.records}
        delta.detach()
        assert torch.allclose(before, compiled(x), atol=1e-6)


def test_a_delta_on_a_module_without_parameters_is_filled_on_the_backbones_device():
    with torch.device("meta"):
        backbone = nn.ModuleDict({"act": nn.ReLU(), "fc": nn.Linear(2, 2)})
    insertions = {"act": nn.Linear(2, 2, bias=False)}

    fill(insertions, backbone, {"act.deltas.weight": torch.ones(2, 2)})

    assert insertions["act"].weight.is_meta


def test_a_head_put_aside_is_cast_with_the_backbone_for_the_fingerprint(tmp_path):
    backbone = bert()
    first = LoraModel(backbone, name="first")
    first.freeze_module(exclude=["deltas", "classifier"])
    backbone.bfloat16()
    first.detach()
    second = LoraModel(backbone, name="second")
    second.freeze_module()
    second.save_finetuned(tmp_path)

    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=bert().bfloat16())


class Normed(nn.Module):
    """A small network whose batch norm moves in training, frozen or not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).flatten(1))


def test_running_statistics_belong_to_the_delta_that_moved_them(tmp_path):
    backbone = Normed()
    before = tensors_of(backbone)
    x = torch.randn(8, 3, 4, 4)
    delta = LoraModel(backbone, modified_modules=["fc"])
    delta.freeze_module()
    stir(delta)
    backbone.train()(x)
    with torch.no_grad():
        after = backbone.eval()(x)
    delta.save_finetuned(tmp_path)
    delta.detach()

    assert equal(before, tensors_of(backbone))
    loaded = AutoDeltaModel.from_finetuned(tmp_path, backbone_model=backbone)
    with torch.no_grad():
        assert torch.equal(after, backbone(x))
    loaded.detach()
    assert equal(before, tensors_of(backbone))
    assert backbone.norm.num_batches_tracked == 0
