"""What people say about a delta is gathered under the keys of the schema, and nothing is lost in silence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deltahub.checkpoint.config import check_document
from deltahub.checkpoint.metadata import gather
from deltahub.errors import ConfigError, ReferenceSyntaxError


def gathered(center_args=(), pool=(), list_tags=(), dict_tags=(), test_result=None, usage=""):
    return gather(dict(center_args), dict(pool), list_tags, dict(dict_tags), test_result, usage)


def test_empty_metadata_is_not_saved():
    assert gathered({"description": "", "train_tasks": None, "tags": []}) == {}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train_task", "train_tasks"),
        ("task_name", "train_tasks"),
        ("dataset_name", "train_datasets"),
        ("test_metric", "test_metrics"),
        ("train_tasks", "train_tasks"),
    ],
)
def test_scripts_may_use_other_names_for_the_same_facts(key, expected):
    assert gathered({key: "sst2"}) == {expected: ["sst2"]}


def test_lists_stay_lists():
    assert gathered({"train_tasks": ("sst2", "mnli")}) == {"train_tasks": ["sst2", "mnli"]}


def test_an_unknown_key_of_center_args_names_the_nearest():
    with pytest.raises(ConfigError, match=r"center_args has no key 'descripton': did you mean 'description'\?"):
        gathered({"descripton": "x"})


def test_unknown_keys_of_the_pool_are_passed_over():
    assert gathered(pool={"learning_rate": 0.1, "license": "mit"}) == {"license": "mit"}


def test_center_args_win_over_the_pool():
    assert gathered({"license": "mit"}, pool={"license": "gpl"}) == {"license": "mit"}


def test_facts_of_the_checkpoint_are_not_repeated():
    assert gathered({"delta_type": "lora", "checkpoint_size": 3, "trainable_ratio": 0.1}) == {}


def test_tags_of_all_kinds_are_one_sorted_list_without_twins():
    found = gathered({"tags": ["b"]}, list_tags=["c", "b"], dict_tags={"task": "sst2", "seed": 3})

    assert found == {"tags": ["b", "c", "seed=3", "task=sst2"]}


@pytest.mark.parametrize("tag", ["../x", "s\u0455t2", "a\nb", ""])
def test_a_bad_tag_is_refused(tag):
    with pytest.raises(ReferenceSyntaxError):
        gathered(list_tags=[tag])


@pytest.mark.parametrize(
    ("result", "expected"), [(0.9, {"performance": 0.9}), ({"f1": 0.8}, {"f1": 0.8}), (0, {"performance": 0})]
)
def test_a_test_result_is_metrics_or_one_number(result, expected):
    assert gathered(test_result=result) == {"test_result": expected}


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.array(0.5, np.float16)])
def test_numbers_of_numpy_and_torch_are_saved_as_plain_numbers(number):
    assert json.loads(json.dumps(gathered(test_result={"f1": number}))) == {"test_result": {"f1": 0.5}}
    assert json.loads(json.dumps(gathered(test_result=number))) == {"test_result": {"performance": 0.5}}
    assert json.loads(json.dumps(gathered({"test_performance": number}))) == {"test_performance": 0.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_is_no_number_is_refused_by_the_config(value):
    metadata = {"test_result": {"loss": value}}
    with pytest.raises(ConfigError, match=r"metadata\.test_result\.loss must be"):
        check_document({"format_version": 1, "delta_type": "lora", "metadata": metadata})


def test_a_wrong_type_is_a_config_error_not_a_crash():
    metadata = gathered({"train_tasks": 5})
    with pytest.raises(ConfigError, match=r"metadata\.train_tasks"):
        check_document({"format_version": 1, "delta_type": "lora", "metadata": metadata})


def test_usage_is_kept_as_written():
    assert gathered(usage="Just *load* it.") == {"usage": "Just *load* it."}


@pytest.mark.parametrize("value", ["high", None, True, float("nan"), float("inf"), [0.9]])
def test_a_test_result_that_is_not_a_finite_number_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"test_result\['acc'\] is .*; expected a finite number"):
        gather({}, {}, (), {}, {"acc": value}, "")
