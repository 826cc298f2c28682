"""Deltas on backbones of which accelerate keeps a part elsewhere."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn

from deltahub import AdapterModel, AutoDeltaModel, LayerNormModel, LoraModel, SoftPromptModel
from deltahub.engine.building import build, complete_config
from deltahub.engine.offloading import device_of
from deltahub.errors import CheckpointError, ConfigError, DeltaHubError, MergeError
from tests.backbones import bert, forward, gpt2, llama, logits_of, stir

CPU = torch.device("cpu")
METHODS = [
    (LoraModel, {}),
    (LoraModel, {"use_dora": True}),  # reads the layer's weight
    (LayerNormModel, {}),  # tries the layer
    (SoftPromptModel, {"soft_token_num": 2}),  # starts as embeddings of the backbone
    (AdapterModel, {"modified_modules": ["self_attn"]}),  # looks for the width of a module
]


def offloaded(backbone, **options):
    """A backbone whose parameters are on the meta device between calls."""
    cpu_offload(backbone, execution_device=CPU, **options)
    return backbone


@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_delta_acts_on_an_offloaded_backbone_as_on_any(method, options, tmp_path):
    plain, away = llama(), offloaded(llama())
    torch.manual_seed(0)
    delta = method(plain, **options)
    torch.manual_seed(0)
    fresh = method(away, **options)
    assert torch.equal(logits_of(plain), logits_of(away))

    stir(delta)
    delta.freeze_module()
    delta.save_finetuned(tmp_path)
    fresh.remove()
    loaded = AutoDeltaModel.from_finetuned(tmp_path, away)
    for _ in range(2):
        assert torch.equal(logits_of(plain), logits_of(away))
        loaded.detach()
        loaded.attach()


def test_a_delta_trains_on_an_offloaded_backbone_and_loads_on_any(tmp_path):
    away = offloaded(gpt2())  # its head is tied to its embeddings, which accelerate takes apart
    delta = LoraModel(away, lora_r=2)
    delta.freeze_module()
    stir(delta)
    forward(away).sum().backward()
    assert all(parameter.grad is not None for parameter in delta.parameters())
    delta.save_finetuned(tmp_path)

    plain = gpt2()
    AutoDeltaModel.from_finetuned(tmp_path, plain)
    assert torch.equal(logits_of(plain), logits_of(away))


def test_values_on_disk_are_compared_too(tmp_path):
    delta = LoraModel(llama(), lora_r=2)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path / "delta")
    away = llama()
    disk_offload(away, tmp_path / "weights", execution_device=CPU)
    AutoDeltaModel.from_finetuned(tmp_path / "delta", away)

    assert torch.equal(logits_of(delta.backbone_model), logits_of(away))


def test_values_whose_file_is_gone_are_named(tmp_path):
    away = llama()
    disk_offload(away, tmp_path / "weights", execution_device=CPU)
    delta = LoraModel(away, lora_r=2)
    delta.freeze_module()
    stir(delta)
    for path in (tmp_path / "weights").glob("*.mlp.*.dat"):
        path.unlink()
    with pytest.raises(DeltaHubError, match=r"The values of .*mlp.*weight, which is offloaded, cannot be read"):
        delta.save_finetuned(tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def test_offloaded_tensors_cannot_be_trained_replaced_or_merged(tmp_path):
    delta = LoraModel(bert(), lora_r=2)
    delta.freeze_module(exclude=["deltas", "classifier"])
    delta.save_finetuned(tmp_path)
    away = offloaded(bert())

    with pytest.raises(CheckpointError, match=r"classifier\.\w+ is on the meta device .* can hold no value"):
        AutoDeltaModel.from_finetuned(tmp_path, away)
    fresh = LoraModel(away, lora_r=2)
    with pytest.raises(CheckpointError, match="is on the meta device"):
        fresh.save_finetuned(tmp_path / "all")
    with pytest.raises(ConfigError, match=r"classifier\.bias is offloaded, so its gradients would be lost"):
        fresh.freeze_module(exclude=["deltas", "classifier"])
    with pytest.raises(MergeError, match=r"query\.weight is on the meta device"):
        fresh.merge()


def test_blocks_that_are_offloaded_as_a_whole_are_refused():
    away = offloaded(llama(), preload_module_classes=["LlamaDecoderLayer"])

    with pytest.raises(ConfigError, match=r"accelerate offloads model\.layers\.0 with all that is in it"):
        LoraModel(away)


def test_a_delta_that_would_be_offloaded_with_its_backbone_says_so():
    backbone = llama()
    LoraModel(backbone)

    with pytest.raises(ConfigError, match="Offload the backbone before deltas are added"):
        offloaded(backbone)


class Codes(nn.Module):
    """A quantised layer: buffers of integers, and not one parameter."""

    def __init__(self):
        super().__init__()
        self.in_features = self.out_features = 4
        self.register_buffer("codes", torch.zeros(4, 4, dtype=torch.int8, device="meta"))


def test_new_parameters_are_on_the_device_of_the_layer():
    backbone = nn.Sequential(nn.Linear(4, 4), Codes())  # on two devices, one of them without values

    assert device_of(backbone[1], backbone).type == "meta"
    assert device_of(nn.ReLU(), backbone).type == "cpu"
    config = complete_config(LoraModel, LoraModel.config_class(modified_modules=("0", "1")), backbone)
    made = build(LoraModel, backbone, config)
    assert [made[name].lora_A.device.type for name in ("0", "1")] == ["cpu", "meta"]
