"""What is said about a version can be amended after its push; its content and digest stay, and the log keeps the changes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from deltahub.errors import CheckpointError, ConfigError, NoVersionError
from deltahub.files.documents import with_checksum
from deltahub.registry.amend import Amendment, amend
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.mirror import copy
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Metric, Query, Search
from deltahub.registry.search.index import Index
from deltahub.stores.memory import MemoryStore

ALL = Amendment("first", {"accuracy": 0.93, "f1": 0.5}, "trained on SST-2", "# Better")


@pytest.fixture
def registry(publish) -> Registry:
    registry = Registry(MemoryStore())
    publish(registry, message="frist")
    return registry


def found(registry, tmp_path, condition) -> list[str]:
    query = Query(metrics=(Metric.parse(condition),))
    return [line.name for line in Index(tmp_path / "index.sqlite3", registry).search(Search(query))[0]]


def test_message_metrics_description_and_card_are_amended_and_the_digest_stays(registry, tmp_path):
    before = registry.document("acme/ner").versions["v1"]
    document, version = amend(registry, "acme/ner", None, ALL)
    entry = document.versions[version]
    assert replace(entry, message=before.message, summary=before.summary, card=None) == before
    assert (entry.message, entry.summary["description"], entry.card) == ("first", "trained on SST-2", "# Better")
    assert found(registry, tmp_path, "accuracy>0.9") == ["acme/ner"]
    moves = {(move.before, move.after) for move in document.log if move.action == "amend"}
    assert ("message: frist", "message: first") in moves
    assert (None, "metric accuracy: 0.93") in moves
    assert ReferenceDocument.from_bytes(document.to_bytes(), "acme/ner") == document

    document, _ = amend(registry, "acme/ner", "latest", Amendment(metrics={"f1": None}, description="", card=""))
    entry = document.versions["v1"]
    assert (entry.message, entry.card, "description" in entry.summary) == ("first", None, False)
    assert dict(entry.summary["metrics"]) == {"accuracy": 0.93}
    assert amend(registry, "acme/ner", "v1", Amendment("first"))[0] == document  # nothing is changed by the same again


def test_an_amended_version_is_the_same_in_a_mirror_and_in_one_with_a_history_of_its_own(registry, publish):
    same, other = Registry(MemoryStore(), "same"), Registry(MemoryStore(), "other")
    for target in (same, other):
        list(copy(registry, target))
    publish(other, value=0.75)
    amend(registry, "acme/ner", None, ALL)
    for target in (same, other):
        list(copy(registry, target))
        assert target.document("acme/ner").versions["v1"] == registry.document("acme/ner").versions["v1"]


def test_a_tag_that_is_a_number_is_found_as_a_metric(publish, tmp_path):
    registry = Registry(MemoryStore())
    publish(registry, tags=["accuracy=0.93", "lang=en"])
    assert found(registry, tmp_path, "accuracy>0.9") == ["acme/ner"]
    assert found(registry, tmp_path, "accuracy>0.95") == []


@pytest.mark.parametrize(
    "wrong", [{"message": "x" * 4001}, {"card": "x" * 200_000}, {"metrics": {"a": math.nan}}, {"metrics": {"": 1.0}}]
)
def test_an_overlong_text_or_invalid_metric_is_refused(wrong):
    with pytest.raises(ConfigError):
        Amendment(**wrong)


def test_a_version_that_is_not_there_is_not_amended(registry):
    with pytest.raises(NoVersionError):
        amend(registry, "acme/ner", "v9", ALL)


def test_a_document_of_a_later_release_is_refused_with_advice(registry):
    document = json.loads(registry.document("acme/ner").to_bytes())
    del document["checksum"]
    with pytest.raises(CheckpointError, match="Update deltahub"):
        ReferenceDocument.from_bytes(with_checksum({**document, "schema_version": 5}), "acme/ner")


@pytest.mark.parametrize("value", ["0.9", True, [0.9], math.nan, 10**400])
def test_a_metric_that_is_not_a_finite_number_is_refused_before_anything_changes(value):
    with pytest.raises(ConfigError, match="is not a metric"):
        Amendment(metrics={"acc": value})
