import errno
import json
import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltahub
from deltahub import AdapterModel, AutoDeltaModel, LoraModel, deltas_of
from deltahub.engine.site import is_delta_name
from deltahub.errors import CheckpointError, ConfigError, IntegrityError, StorageError
from tests.backbones import bert, equal, forward, gpt2, logits_of, stir, t5, tensors_of, train, untouched

A = "bert.encoder.layer.0.attention.self.query.deltas.lora_A"


def trained(backbone, exclude=("deltas", "classifier")):
    """A delta after some training."""
    delta = LoraModel(backbone, lora_r=2)
    delta.freeze_module(exclude=list(exclude))
    train(backbone, 2)
    return delta


@pytest.fixture
def saved(tmp_path):
    """The folder of a saved delta with a classifier head, and the logits that it gives."""
    backbone = bert()
    trained(backbone).save_finetuned(tmp_path / "delta")
    return tmp_path / "delta", logits_of(backbone)


def load(folder, backbone=None, **options):
    backbone = backbone or bert()
    return AutoDeltaModel.from_finetuned(folder, backbone_model=backbone, **options)


def refused(error, match, folder, backbone=None, **options):
    """Load a delta that must be refused, and see that the backbone is as before."""
    backbone = backbone or bert()
    with untouched(backbone), pytest.raises(error, match=match) as caught:
        load(folder, backbone, **options)
    return str(caught.value)


def test_a_saved_delta_is_a_folder_of_four_files(saved):
    folder, _ = saved
    config = json.loads((folder / "delta_config.json").read_text())

    assert {path.name for path in folder.iterdir()} == {"README.md", "backbone.json", "delta.safetensors", "delta_config.json"}
    assert (config["delta_type"], config["lora_r"], config["unfrozen_modules"]) == ("lora", 2, ["deltas", "classifier"])
    assert config["backbone_class"] == "BertForSequenceClassification"
    assert config["backbone_hash"] == json.loads((folder / "backbone.json").read_text())["hash"]


def test_only_what_was_trained_is_saved(saved):
    names = set(load_file(saved[0] / "delta.safetensors"))

    assert {name for name in names if not is_delta_name(name)} == {"classifier.weight", "classifier.bias"}
    assert len(names) == 2 + 2 * 2 * 2  # layers, q and v, A and B
    assert A in names


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


def test_two_checkpoints_on_one_backbone_are_independent(saved, tmp_path):
    other = bert()
    AdapterModel(other).save_finetuned(tmp_path / "other", state_dict=AdapterModel(bert()).state_dict())
    folder, expected = saved
    backbone = bert()
    first, second = load(folder, backbone), load(folder, backbone)
    assert list(deltas_of(backbone)) == ["lora", "lora_1"]

    stir(second)
    second.detach()
    assert torch.equal(expected, logits_of(backbone))
    first.detach()
    assert torch.equal(logits_of(bert()), logits_of(backbone))


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


def test_options_given_at_loading_replace_the_saved_ones(saved):
    delta = load(saved[0], lora_alpha=0, name="mine")

    assert (delta.config.lora_alpha, delta.name) == (0, "mine")
    assert torch.equal(saved[1], saved[1])
    refused(ConfigError, "lora has no option 'lora_alfa': did you mean 'lora_alpha'", saved[0], lora_alfa=1)
    refused(ConfigError, "takes no option|no option 'bogus'", saved[0], bogus=1)


def test_a_name_that_is_taken_is_refused(saved):
    backbone = bert()
    load(saved[0], backbone, name="mine")

    refused(ConfigError, "A delta called 'mine' is on this backbone already", saved[0], backbone, name="mine")


def test_only_the_class_of_a_delta_loads_it(saved):
    with pytest.raises(ConfigError, match=r"AdapterModel loads deltas of type 'adapter', and this one is 'lora'\. Use Auto"):
        AdapterModel.from_finetuned(saved[0], backbone_model=bert())
    assert LoraModel.from_finetuned(saved[0], backbone_model=bert()).name == "lora"


def rewrite(folder, change):
    """Change the tensors of a checkpoint, as its author could have."""
    import hashlib

    path, config = folder / "delta.safetensors", json.loads((folder / "delta_config.json").read_text())
    save_file(change(load_file(path)), path)
    data = path.read_bytes()
    config["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (folder / "delta_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: {k: v for k, v in t.items() if k != A}, f"{A} is missing"),
        (lambda t: {**t, f"{A}_more": t[A]}, f"{A}_more is not part of this delta"),
        (lambda t: {**t, "bert.nowhere.weight": t[A]}, "bert.nowhere.weight is not part of this delta"),
        (lambda t: {**t, A: t[A][:1].contiguous()}, rf"{A} is \[1, 16\], expected \[2, 16\]"),
        (lambda t: {**t, "classifier.weight": torch.ones(4, 16)}, r"classifier.weight is \[4, 16\], expected \[3, 16\]"),
        (lambda t: {**t, A: t[A] * torch.nan}, f"{A} holds values that are not finite"),
        (lambda t: {**t, "classifier.bias": t["classifier.bias"] / 0}, "classifier.bias holds values that are not finite"),
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


def test_what_is_no_delta_is_refused(saved, tmp_path):
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

    with pytest.raises(CheckpointError, match="is a file; expected a folder to save into. Choose another path"):
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
    assert [listed.path for listed in deltahub.list_deltas(tags=["good"])] == ["me/sst2"]


def test_delay_push_prints_a_command_that_works(tmp_path, capsys):
    folder = tmp_path / "a folder"
    trained(bert()).save_finetuned(folder, push_to_dc=True, delay_push=True, center_args={"name": "me/sst2"})
    assert deltahub.list_deltas() == []

    program, command, argument = shlex.split(capsys.readouterr().out)
    assert (program, command) == ("deltahub", "push")
    deltahub.push(argument)
    assert load("me/sst2").name == "lora"
