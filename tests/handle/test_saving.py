import errno
import json
import shlex

import pytest
import torch
from safetensors.torch import load_file

import deltahub
from deltahub import AdapterModel, AutoDeltaModel, LoraModel, deltas_of
from deltahub.engine.site import is_delta_name
from deltahub.errors import CheckpointError, ConfigError, StorageError
from tests.backbones import bert, gpt2, logits_of, stir, t5, train, untouched
from tests.handle.saved import load, trained

A = "bert.encoder.layer.0.attention.self.query.deltas.lora_A"


def test_a_saved_delta_is_a_folder_of_four_files(saved):
    folder, _ = saved
    config = json.loads((folder / "delta_config.json").read_text())

    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "backbone.json",
        "delta.safetensors",
        "delta_config.json",
    }
    assert (config["delta_type"], config["lora_r"], config["unfrozen_modules"]) == ("lora", 2, ["deltas", "classifier"])
    assert config["backbone_class"] == "BertForSequenceClassification"
    assert config["backbone_hash"] == json.loads((folder / "backbone.json").read_text())["hash"]


def test_only_trained_parameters_are_saved(saved):
    names = set(load_file(saved[0] / "delta.safetensors"))

    assert {name for name in names if not is_delta_name(name)} == {"classifier.weight", "classifier.bias"}
    assert len(names) == 2 + 2 * 2 * 2  # layers, q and v, A and B
    assert A in names


def test_training_can_go_on_after_loading(saved, tmp_path):
    backbone = bert()
    delta = load(saved[0], backbone)
    delta.freeze_module()
    train(backbone)
    delta.save_finetuned(tmp_path / "more")
    fresh = bert()
    load(tmp_path / "more", fresh)

    assert delta.config.unfrozen_modules == ("deltas", "classifier")
    assert not torch.equal(saved[1], logits_of(fresh))
    assert torch.equal(logits_of(backbone), logits_of(fresh))


@pytest.mark.parametrize("make", [gpt2, t5])
def test_a_trained_tied_tensor_is_saved_once_and_stays_tied(make, tmp_path):
    backbone, fresh = make(), make()
    trained(backbone, ("deltas", "lm_head")).save_finetuned(tmp_path)
    load(tmp_path, fresh)

    assert torch.equal(logits_of(backbone), logits_of(fresh))
    assert fresh.get_input_embeddings().weight is fresh.get_output_embeddings().weight


def test_a_delta_that_is_not_finite_is_not_saved(saved):
    backbone = bert()
    delta = trained(backbone)
    with torch.no_grad():
        next(delta.parameters())[0, 0] = torch.inf

    with pytest.raises(CheckpointError, match=f"not saved: {A} holds values that are not finite. Training diverged"):
        delta.save_finetuned(saved[0])
    assert torch.equal(saved[1], logits_of(load(saved[0]).backbone_model))


def full_disk(tensors, path):
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(tensors, path):
    path.write_bytes(b"half")
    raise KeyboardInterrupt


def nonsense(tensors, path):
    path.write_bytes(b"this is no safetensors file")


@pytest.mark.parametrize(
    ("save", "error", "why"),
    [
        (full_disk, StorageError, "No space is left there. Free some and repeat; nothing was half written"),
        (interrupt, KeyboardInterrupt, None),
        (nonsense, CheckpointError, "is not a safetensors file"),
    ],
)
def test_a_save_that_fails_leaves_the_old_delta_loadable(saved, save, error, why):
    folder, expected = saved
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    with pytest.raises(error, match=why):
        trained(bert()).save_finetuned(folder, save_function=save)

    assert files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert torch.equal(expected, logits_of(load(folder).backbone_model))


def test_saving_over_an_old_delta_replaces_it_and_leaves_other_files_alone(saved):
    (saved[0] / "config.json").write_text("of a trainer")
    backbone = bert()
    AdapterModel(backbone, bottleneck_dim=3).freeze_module()
    deltas_of(backbone)["adapter"].save_finetuned(saved[0])

    assert (saved[0] / "config.json").read_text() == "of a trainer"
    assert load(saved[0]).name == "adapter"


def test_a_file_is_no_place_to_save_into(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointError, match="is a file; expected a folder to save into"):
        trained(bert()).save_finetuned(tmp_path / "file")


def test_saving_before_freezing_warns_that_everything_is_saved(tmp_path, caplog):
    backbone, fresh = bert(), bert(1)
    delta = LoraModel(backbone)
    stir(delta)
    delta.save_finetuned(tmp_path)

    assert "Every parameter of the backbone is trainable" in caplog.text
    load(tmp_path, fresh)  # it holds all of the backbone, so any weights will do
    assert torch.equal(logits_of(backbone), logits_of(fresh))


def test_only_the_tensors_can_be_saved_and_loaded(tmp_path):
    backbone, other = bert(), bert()
    trained(backbone).save_checkpoint(tmp_path / "new" / "folder" / "delta.safetensors")
    delta = LoraModel(other, lora_r=2)
    delta.freeze_module(exclude=["deltas", "classifier"])
    delta.load_checkpoint(tmp_path / "new" / "folder" / "delta.safetensors")

    assert torch.equal(logits_of(backbone), logits_of(other))
    assert (other.classifier.weight != bert().classifier.weight).any()


def test_loading_tensors_into_a_delta_is_strict(saved):
    backbone = bert()
    delta = load(saved[0], backbone)
    tensors = {name: tensor.clone() for name, tensor in delta.state_dict().items()}

    for name, value in [(A, None), ("more", torch.ones(1)), (A, torch.ones(1, 1)), (A, tensors[A] * torch.nan)]:
        wrong = {key: tensor for key, tensor in {**tensors, name: value}.items() if tensor is not None}
        with untouched(backbone), pytest.raises(CheckpointError):
            delta.load_state_dict(wrong)


def test_facts_about_the_delta_are_saved_with_it(tmp_path):
    trained(bert()).save_finetuned(
        tmp_path,
        center_args={"name": "me/sst2", "train_datasets": "sst2", "license": "mit"},
        center_args_pool={"task_name": "sentiment", "learning_rate": 1e-3},
        list_tags=["good"],
        dict_tags={"seed": 3},
        test_result={"accuracy": 0.9},
        usage="Say something.",
    )
    facts = json.loads((tmp_path / "delta_config.json").read_text())["metadata"]
    card = (tmp_path / "README.md").read_text()

    assert facts == {
        "name": "me/sst2",
        "train_datasets": ["sst2"],
        "train_tasks": ["sentiment"],
        "license": "mit",
        "tags": ["good", "seed=3"],
        "test_result": {"accuracy": 0.9},
        "usage": "Say something.",
    }
    assert all(text in card for text in ("# me/sst2", "license: mit", "Say something.", "| test accuracy | 0.9 |"))


def test_an_unknown_fact_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="center_args has no key 'licence': did you mean 'license'"):
        trained(bert()).save_finetuned(tmp_path / "new", center_args={"licence": "mit"})
    assert not (tmp_path / "new").exists()


def test_push_to_dc_publishes_what_was_saved(tmp_path):
    backbone = bert()
    trained(backbone).save_finetuned(tmp_path, push_to_dc=True, center_args={"name": "me/sst2"}, list_tags=["good"])
    fresh = bert()
    load("me/sst2", fresh)

    assert torch.equal(logits_of(backbone), logits_of(fresh))
    assert [listed.name for listed in deltahub.list_deltas(tags=["good"])] == ["me/sst2"]


def test_delay_push_prints_a_command_that_works(tmp_path, capsys):
    folder = tmp_path / "a folder"
    trained(bert()).save_finetuned(folder, push_to_dc=True, delay_push=True, center_args={"name": "me/sst2"})
    assert deltahub.list_deltas() == []

    program, command, argument = shlex.split(capsys.readouterr().out)
    assert (program, command) == ("deltahub", "push")
    deltahub.push(argument)
    assert load("me/sst2").name == "lora"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensors: {}, "is missing"),
        (lambda tensors: dict(list(tensors.items())[1:]), "is missing"),
        (lambda tensors: {**tensors, "foo": torch.ones(1)}, "foo is not part of this delta"),
        (lambda tensors: {name: tensor.flatten() for name, tensor in tensors.items()}, "expected"),
        (lambda tensors: {name: tensor.new_empty(0) for name, tensor in tensors.items()}, "expected"),
    ],
)
def test_a_state_dict_with_which_it_could_not_be_loaded_is_not_saved(tmp_path, change, sentence):
    delta = LoraModel(bert(), modified_modules=["query"])
    delta.freeze_module()
    with pytest.raises(CheckpointError, match=sentence):
        delta.save_finetuned(tmp_path / "delta", state_dict=change(delta.state_dict()))
    assert not (tmp_path / "delta").exists()


def test_a_gathered_state_dict_is_saved_where_the_model_holds_only_empty_tensors(tmp_path):
    delta = LoraModel(bert(), modified_modules=["query"])
    delta.freeze_module()
    whole = {name: tensor.clone() for name, tensor in delta.state_dict().items()}
    for parameter in delta.parameters():
        parameter.data = parameter.data.new_empty(0)

    with pytest.raises(CheckpointError, match="ZeRO-3"):
        delta.save_finetuned(tmp_path / "empty")
    delta.save_finetuned(tmp_path / "delta", state_dict=whole)
    loaded = AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=bert())
    assert all(torch.equal(loaded.state_dict()[name], whole[name]) for name in whole)


def test_a_delta_is_saved_in_the_dtype_asked_for_and_stays_as_it_is(tmp_path):
    delta = trained(bert())
    delta.save_finetuned(tmp_path, dtype=torch.bfloat16)
    saved_dtypes = {name: tensor.dtype for name, tensor in load_file(tmp_path / "delta.safetensors").items()}

    assert saved_dtypes.pop("classifier.weight") == saved_dtypes.pop("classifier.bias") == torch.float32
    assert set(saved_dtypes.values()) == {torch.bfloat16}
    assert {parameter.dtype for parameter in delta.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in load(tmp_path).parameters()} == {torch.bfloat16}


def test_a_dtype_that_cannot_hold_the_values_is_refused(tmp_path):
    delta = trained(bert())
    with torch.no_grad():
        next(delta.parameters()).fill_(1e6)

    with pytest.raises(CheckpointError, match="Save it in a wider dtype"):
        delta.save_finetuned(tmp_path / "x", dtype=torch.float16)
    with pytest.raises(ConfigError, match="dtype must be"):
        delta.save_finetuned(tmp_path / "x", dtype=torch.int8)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["lora", "dora", "bottleneck"])
def test_saving_warns_of_a_delta_that_changes_nothing_and_not_of_a_trained_one(kind, tmp_path, caplog):
    backbone = bert()
    delta = AdapterModel(backbone) if kind == "bottleneck" else LoraModel(backbone, use_dora=kind == "dora")
    delta.freeze_module(exclude=["deltas"])
    with torch.no_grad():
        for name, parameter in delta.named_parameters():
            if "up_proj" in name:
                parameter.zero_()
    delta.save_finetuned(tmp_path / "start")
    assert "changes no output" in caplog.text
    caplog.clear()
    with torch.no_grad():
        next(p for n, p in delta.named_parameters() if n.endswith(("magnitude_vector", "lora_B", "up_proj.bias"))).add_(
            1
        )
    delta.save_finetuned(tmp_path / "trained")
    assert "changes no output" not in caplog.text
