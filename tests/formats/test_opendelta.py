import json
import logging
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from deltahub import AutoDeltaModel, deltas_of
from deltahub.errors import CheckpointError, ConfigError, PickleRefusedError
from deltahub.formats.opendelta.reading import is_checkpoint, opendelta_hash
from tests.backbones import OPENDELTA, built_once, equal, tensors_of, untouched

# The original never saved the random rules of this one, so nobody can load it.
UNDETERMINED = "compacter__bart__learn_phm_false"
FIXTURES = sorted({path.parent.name for path in OPENDELTA.glob("*/meta.json")} - {UNDETERMINED})
LOSSY = {"bitfit__t5__default"}  # saved without the biases that the original made too late
TOLERANCE = 1e-5  # of logits between 4.26 and 5.x of transformers


def facts_of(name):
    """What is known about a checkpoint that the original made."""
    return json.loads((OPENDELTA / name / "meta.json").read_text())


def backbone_of(facts):
    """The backbone that it was trained on."""
    return backbone_in(OPENDELTA / "_backbones" / facts["backbone_dir"].rpartition("/")[2], facts["backbone_class"])


@built_once
def backbone_in(folder, kind):
    cls = getattr(transformers, kind)
    transformers.utils.logging.disable_progress_bar()
    return cls.from_pretrained(folder, attn_implementation="eager").eval()


def put(name, facts, backbone, **options):
    """Put all deltas of a fixture on a backbone."""
    return [
        AutoDeltaModel.from_finetuned(OPENDELTA / name / folder, backbone_model=backbone, allow_pickle=True, **options)
        for folder in facts["checkpoint_dirs"]
    ]


def outputs_of(backbone, facts, tensors):
    """The logits or hidden states that the original recorded, as they are here."""
    inputs = {key: tensors[key] for key in ("input_ids", "attention_mask", "decoder_input_ids") if key in tensors}
    with torch.no_grad():
        return backbone(**inputs)[facts["output_kind"]]


def far(expected, actual):
    """The largest difference, relative to the largest value."""
    return ((expected - actual).abs().max() / expected.abs().max().clamp(min=1)).item()


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXTURES)
def test_a_checkpoint_of_the_original_gives_the_outputs_of_the_original(name, tmp_path):
    facts, tensors = facts_of(name), load_file(OPENDELTA / name / "io.safetensors")
    backbone = backbone_of(facts)
    before, state = outputs_of(backbone, facts, tensors), tensors_of(backbone)
    assert far(tensors["base_out"], before) < TOLERANCE

    deltas = put(name, facts, backbone)
    after = outputs_of(backbone, facts, tensors)
    expected = tensors["original_reload_out" if name in LOSSY else "delta_out"]
    assert far(expected, after) < TOLERANCE
    same_places = after[:, -tensors["base_out"].shape[1] :]  # a soft prompt adds some in front
    assert far(tensors["base_out"], same_places) > 0.01

    again = backbone_of(facts)  # saved here, it loads with every check and without a pickle
    for number, delta in enumerate(deltas):
        delta.save_finetuned(tmp_path / str(number))
        AutoDeltaModel.from_finetuned(tmp_path / str(number), backbone_model=again)
    assert torch.equal(after, outputs_of(again, facts, tensors))

    for delta in deltas:
        delta.detach()
    assert torch.equal(before, outputs_of(backbone, facts, tensors))
    assert equal(state, tensors_of(backbone))


def test_tensors_not_saved_by_opendelta_are_named():
    facts = facts_of(UNDETERMINED)
    backbone = backbone_of(facts)

    with untouched(backbone), pytest.raises(CheckpointError, match=r"down_sampler\.phm_rule is missing"):
        put(UNDETERMINED, facts, backbone)


# RoBERTa lists its embeddings in another order since; BitFit trained the backbone's own biases.
@pytest.mark.parametrize("name", [n for n in FIXTURES if n.startswith(("lora__", "adapter__")) and "roberta" not in n])
def test_the_hash_of_the_original_is_reproduced(name):
    # The text holds the class names of its day; the parameters are those of the backbone with its delta.
    facts = facts_of(name)
    backbone = backbone_of(facts)
    put(name, facts, backbone)

    text = (OPENDELTA / name / "model_repr.txt").read_text()
    assert facts["original_backbone_hash"] == opendelta_hash(backbone, text)


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of the original that tests may spoil, and its backbone."""
    name = "lora__bert__default"
    shutil.copytree(OPENDELTA / name / "delta", tmp_path / "delta")
    return tmp_path / "delta", backbone_of(facts_of(name))


def spoil(folder, change):
    """Change the tensors of a checkpoint."""
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(change(tensors), folder / "pytorch_model.bin")


def load(folder, backbone, **options):
    return AutoDeltaModel.from_finetuned(folder, backbone_model=backbone, **{"allow_pickle": True, **options})


def test_a_pickle_is_not_opened_without_permission(checkpoint):
    folder, backbone = checkpoint

    with untouched(backbone), pytest.raises(PickleRefusedError) as caught:
        load(folder, backbone, allow_pickle=False)

    assert "pytorch_model.bin is a Python pickle, which can run code" in str(caught.value)
    assert "allow_pickle=True" in str(caught.value)
    assert "safetensors" in str(caught.value)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code in a pickle was run",))


@pytest.mark.parametrize(
    "value", [{"weight": Evil()}, {"weight": "text"}, [torch.ones(1)]], ids=["code", "text", "list"]
)
def test_a_pickle_of_anything_but_tensors_is_refused_even_with_permission(checkpoint, value):
    folder, backbone = checkpoint
    torch.save(value, folder / "pytorch_model.bin")

    with (
        untouched(backbone),
        pytest.raises(CheckpointError, match=r"(more than plain|something other than) tensors"),
    ):
        load(folder, backbone)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_cut_pickle_is_refused(checkpoint, size):
    folder, backbone = checkpoint
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[:size])

    with untouched(backbone), pytest.raises(CheckpointError, match="was not loaded: it is damaged"):
        load(folder, backbone)


def test_the_backbone_can_only_be_checked_by_shape_and_the_log_says_so(checkpoint, caplog):
    load(*checkpoint)

    assert "saved without a list of its backbone's tensors" in caplog.text


def first(tensors):
    return next(iter(tensors))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: {k: v for k, v in t.items() if k != first(t)}, "query.deltas.lora_A is missing"),
        (
            lambda t: {**t, "bert.nowhere.weight": torch.ones(1)},
            "bert.nowhere.weight is neither part of a lora nor of this",
        ),
        (lambda t: {**t, first(t): torch.ones(8, 31)}, r"lora_A is \[8, 31\], expected \[8, 32\]"),
        (lambda t: {**t, first(t): t[first(t)] * torch.nan}, "lora_A holds values that are not finite"),
        (lambda t: {}, "holds no tensor of a delta"),
        (
            lambda t: {name: value for name, value in t.items() if "layer.1.attention.self.query" not in name},
            r"holds no tensors for \S*layer\.1\.attention\.self\.query \(1 of \d+ modules\)",
        ),
        (
            lambda t: {k.replace("layer.1", "layer.7"): v for k, v in t.items()},
            "encoder.layer.7.attention.self.query, which",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(checkpoint, change, why):
    folder, backbone = checkpoint
    spoil(folder, change)

    with untouched(backbone), pytest.raises(CheckpointError, match=why):
        load(folder, backbone)


def two_loras(tensors, second):
    """As if a second LoRA had been on the same layers, its tensors made from those of the first."""
    return {**tensors, **{name.replace(".lora.", ".lora_1."): second(value) for name, value in tensors.items()}}


def test_of_two_deltas_on_a_module_the_one_of_the_size_in_the_config_is_meant(checkpoint):
    folder, backbone = checkpoint
    spoil(
        folder,
        lambda t: (
            {k.replace(".lora.", ".lora_1."): v for k, v in t.items()}
            | {name: torch.ones(3, 32) if name.endswith("A") else torch.ones(32, 3) for name in t}
        ),
    )

    assert {8} == {
        parameter.shape[0] for name, parameter in load(folder, backbone).named_parameters() if name[-1] == "A"
    }


def test_of_two_deltas_of_one_size_the_first_load_takes_the_first_and_the_next_the_second(checkpoint):
    folder, backbone = checkpoint
    spoil(folder, lambda t: two_loras(t, torch.zeros_like))
    first, second = load(folder, backbone), load(folder, backbone)

    assert all(parameter.abs().sum() > 0 for parameter in first.parameters())
    assert all(parameter.abs().sum() == 0 for parameter in second.parameters())


def test_tensors_of_another_delta_are_named_and_left_out(checkpoint, caplog):
    folder, backbone = checkpoint
    spoil(folder, lambda t: {**t, "bert.encoder.layer.0.output.adapter.modulelist.up_proj.bias": torch.ones(32)})
    with caplog.at_level(logging.WARNING):
        load(folder, backbone)

    assert "1 tensors are left out: they are of other deltas that were on the backbone" in caplog.text
    assert list(deltas_of(backbone)) == ["lora"]


@pytest.mark.parametrize("delta_type", ["no_such_type", "loraa"])
def test_an_unknown_type_is_refused(checkpoint, delta_type):
    folder, backbone = checkpoint
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "delta_type": delta_type}))

    with (
        untouched(backbone),
        pytest.raises(ConfigError, match=f"type '{delta_type}', which this version does not load"),
    ):
        load(folder, backbone)


def test_the_config_of_a_backbone_is_no_delta(tmp_path):
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    assert not is_checkpoint(tmp_path)

    (tmp_path / "config.json").write_text("not json")
    assert not is_checkpoint(tmp_path)
    assert not is_checkpoint(tmp_path / "nowhere")


def test_a_delta_config_takes_precedence_over_a_backbone_config(checkpoint):
    folder, backbone = checkpoint
    load(folder, backbone).save_finetuned(folder)  # into the same folder, beside the original's files
    fresh = backbone_of(facts_of("lora__bert__default"))

    assert load(folder, fresh, allow_pickle=False).name == "lora"


@pytest.mark.parametrize("first", [True, False])
def test_a_bias_that_was_trained_in_place_and_beside_is_one_bias(tmp_path, first):
    name, layer = "bitfit__bert__default", "bert.encoder.layer.0.attention.self.query"
    shutil.copytree(OPENDELTA / name / "delta", tmp_path / "delta")
    more = {f"{layer}.bitfit.bias": torch.ones(32)}
    spoil(tmp_path / "delta", lambda t: {**more, **t} if first else {**t, **more})
    plain, both = (
        load(folder, backbone_of(facts_of(name))).state_dict()[f"{layer}.deltas.bias"]
        for folder in (OPENDELTA / name / "delta", tmp_path / "delta")
    )

    assert torch.allclose(plain + 1, both)


def test_a_bias_saved_in_half_precision_is_that_bias_to_the_bit(tmp_path):
    name, bias = "bitfit__bert__default", "bert.encoder.layer.0.attention.self.query.bias"
    shutil.copytree(OPENDELTA / name / "delta", tmp_path / "delta")
    spoil(tmp_path / "delta", lambda t: {key: tensor.half() for key, tensor in t.items()})
    saved = torch.load(tmp_path / "delta" / "pytorch_model.bin", weights_only=True)[bias]
    backbone = backbone_of(facts_of(name))
    offset = load(tmp_path / "delta", backbone).state_dict()[bias.replace(".bias", ".deltas.bias")]

    assert offset.dtype == torch.float32
    assert torch.allclose(backbone.get_parameter(bias) + offset, saved.float(), rtol=0, atol=1e-8)
    assert saved.count_nonzero()


def biases_and_lora(tmp_path, change=lambda bias: bias):
    """Checkpoints of BitFit and of a LoRA trained beside it: as the original saves them, the biases are in both."""
    for name, folder in (("bitfit__bert__default", "bitfit"), ("lora__bert__default", "lora")):
        shutil.copytree(OPENDELTA / name / "delta", tmp_path / folder)
    biases = torch.load(tmp_path / "bitfit" / "pytorch_model.bin", weights_only=True)
    spoil(tmp_path / "lora", lambda t: {**t, **{name: change(bias) for name, bias in biases.items()}})
    return tmp_path / "bitfit", tmp_path / "lora"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["BitFit first", "LoRA first"])
def test_biases_that_checkpoints_of_two_deltas_share_are_taken_once(tmp_path, caplog, order):
    folders = biases_and_lora(tmp_path)
    facts, tensors = facts_of("lora__bert__default"), load_file(OPENDELTA / "lora__bert__default" / "io.safetensors")
    expected = backbone_of(facts)
    load(folders[0], expected)
    load(OPENDELTA / "lora__bert__default" / "delta", expected)
    backbone = backbone_of(facts)
    deltas = [load(folders[which], backbone) for which in order]

    assert far(outputs_of(expected, facts, tensors), outputs_of(backbone, facts, tensors)) < TOLERANCE
    assert f"{deltas[0].name!r} on the backbone has them already" in caplog.text


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["BitFit first", "LoRA first"])
def test_biases_of_another_moment_of_training_are_refused(tmp_path, order):
    folders = biases_and_lora(tmp_path, lambda bias: bias + 0.5)
    backbone = backbone_of(facts_of("lora__bert__default"))
    load(folders[order[0]], backbone)

    with untouched(backbone), pytest.raises(CheckpointError, match="with another value than in the delta"):
        load(folders[order[1]], backbone)


def test_a_lora_keeps_its_trained_biases_beside_another_delta_that_has_them(tmp_path, caplog):
    name = "lora__bert__bias_unfrozen"
    facts, tensors = facts_of(name), load_file(OPENDELTA / name / "io.safetensors")
    folder = OPENDELTA / name / "delta"
    backbone = backbone_of(facts)
    first = load(folder, backbone, name="first")
    expected = outputs_of(backbone, facts, tensors)
    first.detach()
    second = load(folder, backbone, name="second")
    assert torch.equal(expected, outputs_of(backbone, facts, tensors))

    third = load(folder, backbone, name="third")  # while the second is attached
    second.detach()
    assert torch.equal(expected, outputs_of(backbone, facts, tensors))
    second.remove()
    first.remove()
    assert torch.equal(expected, outputs_of(backbone, facts, tensors))
    assert third.export(tmp_path / "written", "opendelta", verify=True).comparison.difference == 0
    assert "trained" not in caplog.text


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["BitFit first", "LoRA first"])
def test_a_detached_delta_does_not_bring_the_biases_it_shares(tmp_path, caplog, order):
    folders = biases_and_lora(tmp_path)
    facts, tensors = facts_of("lora__bert__default"), load_file(OPENDELTA / "lora__bert__default" / "io.safetensors")
    alone, backbone = backbone_of(facts), backbone_of(facts)
    load(folders[order[1]], alone)
    first = load(folders[order[0]], backbone)
    first.detach()
    caplog.clear()
    load(folders[order[1]], backbone)

    assert torch.equal(outputs_of(alone, facts, tensors), outputs_of(backbone, facts, tensors))
    assert f"biases are also trained by {first.name!r}, which is detached" in caplog.text
