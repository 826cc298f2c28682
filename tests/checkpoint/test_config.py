"""A config that exists is a config that can work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.checkpoint.config import check_document, known_types
from deltahub.deltas import AdapterConfig, BitFitConfig, IA3Config, LoraConfig
from deltahub.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"
modules = st.none() | st.lists(st.text("abc.0", min_size=1, max_size=5), max_size=3)
hashes = st.none() | st.text("0123456789abcdef", min_size=32, max_size=32)


@given(
    st.builds(
        LoraConfig,
        modified_modules=modules,
        exclude_modules=modules,
        common_structure=st.none() | st.booleans(),
        backbone_class=st.text(max_size=5),
        backbone_hash=hashes,
        lora_r=st.integers(1, 10**6),
        lora_alpha=st.floats(allow_nan=False, allow_infinity=False),
        lora_dropout=st.floats(0, 1, exclude_max=True),
    )
    | st.builds(AdapterConfig, modified_modules=modules, bottleneck_dim=st.integers(1, 99))
    | st.builds(BitFitConfig, modified_modules=modules)
)
def test_every_config_is_read_back_from_json_as_it_was(config):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_golden_config_is_still_read():
    document = json.loads((GOLDEN / "delta_config.v1.json").read_bytes())
    check_document(document)

    expected = LoraConfig(
        modified_modules=["query"],
        lora_r=1,
        backbone_class="BertModel",
        backbone_checkpoint_name="bert-tiny",
        backbone_hash=document["backbone_hash"],
    )
    assert LoraConfig.from_dict(document) == expected


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LoraConfig().lora_r = 4


def test_the_caller_s_list_is_copied():
    modules = ["query"]
    config = LoraConfig(modified_modules=modules)
    modules.append("value")

    assert config.modified_modules == ("query",)


def test_overrides_replace_what_the_document_says():
    assert LoraConfig.from_dict({"delta_type": "lora", "lora_r": 2}, lora_r=4).lora_r == 4


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("lora_rank", "did you mean 'lora_r'?"), ("modified_module", "did you mean 'modified_modules'?")],
)
def test_an_unknown_option_names_the_nearest(option, nearest):
    with pytest.raises(ConfigError) as caught:
        LoraConfig.from_dict({"delta_type": "lora", option: 8})
    assert str(caught.value) == f"lora has no option {option!r}: {nearest}"


def test_an_option_like_no_other_lists_them_all():
    with pytest.raises(
        ConfigError, match="bitfit has no option 'zzz': known are: backbone_checkpoint_name, backbone_class"
    ):
        BitFitConfig.from_dict({"zzz": 1})


@pytest.mark.parametrize("delta_type", ["lorra", "LORA", None, 3, ["lora"], {}])
def test_an_unknown_delta_type_names_what_is_known(delta_type):
    with pytest.raises(ConfigError) as caught:
        check_document({"format_version": 1, "delta_type": delta_type})
    assert str(caught.value).startswith(f"delta_type is {delta_type!r}, which this version does not know: ")
    assert "'lora'" in str(caught.value) or ", ".join(sorted(known_types())) in str(caught.value)


def test_the_config_of_one_type_is_not_read_as_another():
    with pytest.raises(ConfigError, match=r"is of type 'bitfit', not 'lora'\. AutoDeltaConfig\.from_dict"):
        LoraConfig.from_dict({"delta_type": "bitfit"})


@pytest.mark.parametrize(
    ("options", "clause"),
    [
        ({"lora_r": 0}, "lora_r must be at least 1, got 0"),
        ({"lora_r": -1}, "lora_r must be at least 1, got -1"),
        ({"lora_r": "8"}, "lora_r must be of type integer, got '8'"),
        ({"lora_r": 8.0}, "lora_r must be of type integer, got 8.0"),
        ({"lora_r": 8.5}, "lora_r must be of type integer, got 8.5"),
        ({"lora_r": True}, "lora_r must be of type integer, got True"),
        ({"lora_r": None}, "lora_r must be of type integer, got None"),
        ({"lora_alpha": "16"}, "lora_alpha must be of type number, got '16'"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be of type number, got nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be of type number, got inf"),
        ({"lora_dropout": 1}, "lora_dropout must be less than 1, got 1"),
        ({"lora_dropout": -0.1}, "lora_dropout must be at least 0, got -0.1"),
        ({"common_structure": "yes"}, "common_structure must be of type boolean or null, got 'yes'"),
        ({"backbone_class": None}, "backbone_class must be of type string, got None"),
        ({"modified_modules": [1]}, "modified_modules[0] must be of type string, got 1"),
        ({"modified_modules": [""]}, "modified_modules[0] must be longer than"),
        ({"backbone_hash": "xyz"}, "backbone_hash must match pattern"),
        ({"backbone_hash": f"{'a' * 32}\n"}, "backbone_hash must match pattern"),
    ],
)
def test_a_value_that_can_never_work_is_refused_with_what_was_expected_and_found(options, clause):
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**options)
    assert f"The lora config cannot work: {clause}" in str(caught.value)


@pytest.mark.parametrize("value", ["query", 3])
def test_one_name_instead_of_a_list_is_refused_with_the_correct_form(value):
    with pytest.raises(ConfigError, match=r"modified_modules must be a list of names, got .*; for one name write \["):
        LoraConfig(modified_modules=value)
    with pytest.raises(ConfigError, match="feedforward_modules must be a list of names"):
        IA3Config(feedforward_modules=value)


@pytest.mark.parametrize(
    "change", [{"bottleneck_dim": 4}, {"Lora_r": 4}, {"metadata": {"taks": 1}}, {"files": {"a": 1}}]
)
def test_a_document_with_a_key_that_its_type_does_not_have_is_refused(change):
    with pytest.raises(ConfigError):
        check_document({"format_version": 1, "delta_type": "lora", **change})


def test_a_document_without_a_format_version_is_refused():
    with pytest.raises(ConfigError, match="lacks 'format_version'"):
        check_document({"delta_type": "lora"})


@pytest.mark.parametrize(
    "document", [{"format_version": 2, "delta_type": "lora"}, {"format_version": 9, "delta_type": "x"}]
)
def test_a_document_of_a_later_format_asks_for_an_update(document):
    with pytest.raises(ConfigError, match=rf"format_version {document['format_version']}.*Update deltahub"):
        check_document(document)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", "a\n", ".hidden"])
def test_a_document_that_lists_a_file_outside_its_folder_is_refused(name):
    entry = {"sha256": "0" * 64, "size": 1}
    with pytest.raises(ConfigError, match="files"):
        check_document({"format_version": 1, "delta_type": "lora", "files": {name: entry}})
