"""A delta that nobody names is called by its task and its backbone."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltahub.checkpoint.default_name import default_name
from deltahub.reference import Reference

CONFIG = {"delta_type": "lora", "backbone_checkpoint_name": "t5-base", "backbone_class": "T5Model"}


@pytest.mark.parametrize(
    ("metadata", "tags", "expected"),
    [
        ({}, [], "DeltaHub/lora-t5-base"),
        ({}, ["sst2"], "DeltaHub/sst2-t5-base"),
        ({}, ["best", "task=sst2"], "DeltaHub/sst2-t5-base"),
        ({}, ["dataset=glue", "task=sst2"], "DeltaHub/sst2-t5-base"),
        ({"tags": ["mnli"]}, [], "DeltaHub/mnli-t5-base"),
        ({"tags": ["mnli"]}, ["sst2"], "DeltaHub/sst2-t5-base"),
        ({"train_datasets": ["glue"]}, ["sst2"], "DeltaHub/glue-t5-base"),
        ({"train_tasks": ["nli"], "train_datasets": ["glue"]}, [], "DeltaHub/nli-t5-base"),
        ({"name": "acme/mine"}, ["sst2"], "acme/mine"),
    ],
)
def test_the_first_fact_known_about_the_task_gives_the_name(metadata, tags, expected):
    assert default_name({**CONFIG, "metadata": metadata}, tags) == expected


def test_the_class_replaces_a_missing_backbone_name():
    assert default_name({"delta_type": "lora", "backbone_class": "T5Model"}) == "DeltaHub/lora-T5Model"
    assert default_name({"delta_type": "lora"}) == "DeltaHub/lora-backbone"


def test_the_namespace_is_the_environment_s(monkeypatch):
    monkeypatch.setenv("DELTAHUB_NAMESPACE", "acme")
    assert default_name(CONFIG) == "acme/lora-t5-base"


@given(st.text(max_size=120), st.text(max_size=120))
@example("sst2", "model.json")
@example("sst2", "model.git")
@example("a" * 90, "b.lock.lock")
@example("", "")
@example("a.", ".b")
@example("../..", "/home/ada/t5")
def test_the_default_name_is_valid_for_any_task_and_backbone(task, backbone):
    name = default_name({"delta_type": "lora", "backbone_checkpoint_name": backbone}, [task.replace("=", "")])

    assert Reference.parse(name).path == name
