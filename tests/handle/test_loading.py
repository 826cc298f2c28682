import hashlib
import json
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

from deltahub import AdapterConfig, AdapterModel, AutoDeltaConfig, AutoDeltaModel, LoraModel, deltas_of
from deltahub.checkpoint import safetensors_header
from deltahub.engine.site import is_delta_name
from deltahub.errors import CheckpointError, ConfigError, IntegrityError
from deltahub.files import atomic
from tests.backbones import (
    bert,
    equal,
    forward,
    logits_of,
    stir,
    tensors_of,
    untouched,
)
from tests.handle.saved import load

A = "bert.encoder.layer.0.attention.self.query.deltas.lora_A"


def refused(error, match, folder, backbone=None, **options):
    """Load a delta that must be refused, and see that the backbone is as before."""
    backbone = backbone or bert()
    with untouched(backbone), pytest.raises(error, match=match) as caught:
        load(folder, backbone, **options)
    return str(caught.value)


def test_a_load_opens_each_file_once(saved, monkeypatch):
    opened, open_file = [], atomic.open_file
    monkeypatch.setattr(atomic, "open_file", lambda path: opened.append(path.name) or open_file(path))

    load(saved[0], bert())

    assert sorted(opened) == ["README.md", "backbone.json", "delta.safetensors", "delta_config.json"]


def test_a_load_parses_the_header_of_its_tensors_once(saved, monkeypatch):
    parsed, parse = [], safetensors_header.tensor_entries
    monkeypatch.setattr(safetensors_header, "tensor_entries", lambda *given: parsed.append(given) or parse(*given))

    load(saved[0], bert())

    assert len(parsed) == 1


def test_a_loaded_delta_gives_the_same_logits_and_comes_off(saved):
    folder, expected = saved
    backbone = bert()
    logits, tensors = logits_of(backbone), tensors_of(backbone)
    delta = load(folder, backbone)

    assert torch.equal(expected, logits_of(backbone))
    delta.detach()
    assert torch.equal(logits, logits_of(backbone))
    assert equal(tensors, tensors_of(backbone))


def test_a_loaded_backbone_is_frozen_but_for_the_delta_and_evaluates(saved):
    backbone = bert().train()
    load(saved[0], backbone)
    forward(backbone).sum().backward()

    assert not backbone.training
    with_gradient = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert {name for name in with_gradient if not is_delta_name(name)} == {"classifier.weight", "classifier.bias"}


def test_two_checkpoints_on_one_backbone_are_independent(saved):
    folder, expected = saved
    backbone = bert()
    first, second = load(folder, backbone), load(folder, backbone)
    assert list(deltas_of(backbone)) == ["lora", "lora_1"]

    stir(second)
    second.detach()
    assert torch.equal(expected, logits_of(backbone))
    first.detach()
    assert torch.equal(logits_of(bert()), logits_of(backbone))


def test_options_given_at_loading_replace_the_saved_ones(saved):
    delta = load(saved[0], lora_alpha=0, name="mine")

    assert (delta.config.lora_alpha, delta.name) == (0, "mine")
    refused(ConfigError, "lora has no option 'lora_alfa': did you mean 'lora_alpha'", saved[0], lora_alfa=1)


def test_a_name_that_is_taken_is_refused(saved):
    backbone = bert()
    load(saved[0], backbone, name="mine")

    refused(ConfigError, "A delta called 'mine' is on this backbone already", saved[0], backbone, name="mine")


def test_only_the_class_of_a_delta_loads_it(saved):
    with pytest.raises(
        ConfigError, match=r"AdapterModel loads deltas of type 'adapter', and this one is 'lora'\. Use Auto"
    ):
        AdapterModel.from_finetuned(saved[0], backbone_model=bert())
    assert LoraModel.from_finetuned(saved[0], backbone_model=bert()).name == "lora"


def rewrite(folder, change):
    """Change the tensors of a checkpoint, as its author could have."""
    path, config = folder / "delta.safetensors", json.loads((folder / "delta_config.json").read_text())
    save_file(change(load_file(path)), path)
    data = path.read_bytes()
    config["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (folder / "delta_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: {k: v for k, v in t.items() if k != A}, f"{A} is missing"),
        (lambda t: {**t, f"{A}_more": t[A].clone()}, f"{A}_more is not part of this delta"),
        (lambda t: {**t, "bert.nowhere.weight": t[A].clone()}, "bert.nowhere.weight is not part of this delta"),
        (lambda t: {**t, A: t[A][:1].contiguous()}, rf"{A} is \[1, 16\], expected \[2, 16\]"),
        (
            lambda t: {**t, "classifier.weight": torch.ones(4, 16)},
            r"classifier.weight is \[4, 16\], expected \[3, 16\]",
        ),
        (lambda t: {**t, A: t[A] * torch.nan}, f"{A} holds values that are not finite"),
        (
            lambda t: {**t, "classifier.bias": t["classifier.bias"] / 0},
            "classifier.bias holds values that are not finite",
        ),
        (lambda t: {**t, A: t[A].long()}, f"{A} is torch.int64, expected torch.float32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, change, why):
    folder, _ = saved
    rewrite(folder, change)

    message = refused(CheckpointError, why, folder)
    assert "Load it with the config it was saved with." in message


def test_many_wrong_tensors_are_counted(saved):
    rewrite(saved[0], lambda t: {name: tensor for name, tensor in t.items() if not is_delta_name(name)})

    assert refused(CheckpointError, "is missing; .* and 5 more", saved[0]).count("is missing") == 3


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: data[: len(data) // 2], r"delta.safetensors is damaged: expected \d+ bytes, found \d+ bytes"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged: expected sha256:[0-9a-f]{64}, found sha256:"),
        (lambda data: b"", "found 0 bytes"),
    ],
)
def test_a_cut_or_flipped_file_is_refused(saved, damage, why):
    path = saved[0] / "delta.safetensors"
    path.write_bytes(damage(path.read_bytes()))

    assert "Fetch or save the delta again" in refused(IntegrityError, why, saved[0])


def test_files_that_are_not_a_delta_are_refused(saved, tmp_path):
    assert "Check the path" in refused(CheckpointError, "There is no folder", tmp_path / "nowhere")
    assert "parent folder" in refused(CheckpointError, "is a file", saved[0] / "delta.safetensors")
    (tmp_path / "empty").mkdir()
    refused(CheckpointError, "holds no delta: delta_config.json is missing", tmp_path / "empty")
    (saved[0] / "delta.safetensors").unlink()
    refused(CheckpointError, "delta.safetensors is missing", saved[0])


def test_further_positional_arguments_are_refused(saved):
    with pytest.raises(ConfigError, match="takes no further positional arguments"):
        LoraModel.from_finetuned(saved[0], bert(), None, None, None, "more")


def test_tensors_given_by_hand_are_copied(saved):
    donor = bert()
    source = load(saved[0], donor)
    stir(source)
    backbone = bert()
    delta = load(saved[0], backbone, state_dict=source.state_dict())
    expected = logits_of(donor)
    assert torch.equal(expected, logits_of(backbone))

    stir(delta, 9)
    assert torch.equal(expected, logits_of(donor))
    refused(CheckpointError, "is missing", saved[0], state_dict={})


def test_a_lora_of_a_release_that_did_not_scale_embeddings_is_refused_where_they_scale(tmp_path):
    def backbone():
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(words=BartScaledWordEmbedding(9, 4, 0, embed_scale=3.0)))

    delta = LoraModel(backbone(), modified_modules=["words"], lora_r=2)
    delta.freeze_module()
    delta.save_finetuned(tmp_path / "delta")
    AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone())

    config = tmp_path / "delta" / "delta_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "deltahub_version": "0.1.0"}))
    untouched_backbone = backbone()
    with pytest.raises(CheckpointError, match=r"saved by deltahub 0\.1\.0, which did not multiply the LoRA on words"):
        AutoDeltaModel.from_finetuned(tmp_path / "delta", untouched_backbone)
    assert not deltas_of(untouched_backbone)


@pytest.mark.parametrize("check_hash", [1, 0, "values", None])
def test_a_value_that_only_resembles_a_boolean_does_not_weaken_the_check(saved, check_hash):
    with pytest.raises(ConfigError, match="check_hash must be True, False"):
        AutoDeltaModel.from_finetuned(saved[0], bert(), check_hash=check_hash)


def test_options_replace_those_of_a_config_that_is_given(saved):
    config = AutoDeltaConfig.from_finetuned(saved[0])
    delta = AutoDeltaModel.from_finetuned(saved[0], bert(), delta_config=config, lora_alpha=99)
    assert delta.config.lora_alpha == 99
    with pytest.raises(ConfigError, match="lora has no option 'nonsense'"):
        AutoDeltaModel.from_finetuned(saved[0], bert(), delta_config=config, nonsense=3)
    with pytest.raises(ConfigError, match="This config is of type 'adapter', not 'lora'"):
        AutoDeltaModel.from_finetuned(saved[0], bert(), delta_config=AdapterConfig())
    with pytest.raises(ConfigError, match="delta_config is of type dict; expected a config"):
        AutoDeltaModel.from_finetuned(saved[0], bert(), delta_config=config.to_dict())


def test_facts_of_a_checkpoint_are_no_options(saved):
    with pytest.raises(ConfigError, match="lora has no option 'parents'"):
        AutoDeltaModel.from_finetuned(saved[0], bert(), parents=[])
