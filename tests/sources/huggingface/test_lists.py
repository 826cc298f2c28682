"""What a hub has: lists with filters, and the history of a delta."""

from __future__ import annotations

import json
import uuid

import pytest
from deltahub_cli.main import app_for
from typer.testing import CliRunner

from deltahub.checkpoint.card import front_matter
from deltahub.errors import ConfigError
from deltahub.registry.search.conditions import Metric, Query, Search
from deltahub.sources.huggingface.page import Card
from tests.checkpoints import DOCUMENT
from tests.sources.huggingface.test_push_and_pull import ref
from tests.sources.huggingface.test_unmanifested import upload

# What a hub of DeltaHub lists is compared with its registry in `test_own_hub.py`.
both = pytest.mark.parametrize("server", ["plain", "own"], indirect=True)


@pytest.fixture
def space():
    """A namespace that nobody else uses."""
    return f"team-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def pushed(user, space, new_checkpoint):
    hub = user()
    for number, (name, tags) in enumerate(
        [("ner-bert", ["task=ner"]), ("sst2-bert", ["task=sst2", "best"]), ("sst2-t5", [])]
    ):
        facts = {
            "train_tasks": ["classification"],
            "train_datasets": ["sst2"],
            "test_result": {"accuracy": number / 10},
        }
        card = Card(front_matter({**DOCUMENT, "metadata": facts}), "# A delta\n").to_bytes().decode()
        hub.push(new_checkpoint(metadata=facts, value=number, card=card), f"hf:{space}/{name}", tags=tags)
    upload(hub, f"{space}/a-model", {"config.json": b"{}", "README.md": b"---\ntags: [best]\n---\n"})
    return hub


def names(hub, space, **query):
    found, total = hub.search(Search(Query(author=space, **query)), "hf")
    assert total == len(found)
    return [entry.name.partition("/")[2] for entry in found]


def test_a_list_has_the_deltas_that_a_query_means(pushed, space):
    assert sorted(names(pushed, space)) == ["ner-bert", "sst2-bert", "sst2-t5"]
    assert sorted(names(pushed, space, text="sst2")) == ["sst2-bert", "sst2-t5"]
    assert names(pushed, space, text="sst2 tiny t5") == ["sst2-t5"]
    assert names(pushed, space, tags=("task=sst2",)) == ["sst2-bert"]
    assert names(pushed, space, tags=("best", "task=ner")) == []
    assert sorted(names(pushed, space, delta_type="lora")) == ["ner-bert", "sst2-bert", "sst2-t5"]
    assert names(pushed, space, delta_type="bitfit") == []
    assert names(pushed, space, metrics=(Metric.parse("accuracy>0.1"),)) == ["sst2-t5"]
    assert names(pushed, f"{space}-other") == []


def test_it_is_sorted_by_name_or_metric_and_shown_in_parts(pushed, space):
    assert names(pushed, space, sort="name") == ["ner-bert", "sst2-bert", "sst2-t5"]
    assert names(pushed, space, sort="name", reverse=True) == ["sst2-t5", "sst2-bert", "ner-bert"]
    assert names(pushed, space, sort="accuracy") == ["sst2-t5", "sst2-bert", "ner-bert"]
    found, total = pushed.search(Search(Query(author=space, sort="name"), limit=1, offset=1), "hf")
    assert ([entry.name for entry in found], total) == ([f"{space}/sst2-bert"], 3)


def test_a_list_line_needs_no_request_per_delta(pushed, space, proxy):
    proxy.requests.clear()
    found, _ = pushed.search(Search(Query(author=space, tags=("best",))), "hf")
    assert len(proxy.requests) == 1
    assert found[0].tags == ("best", "task=sst2")
    assert found[0].version == pushed.resolve(ref(found[0].name)).reference.version
    assert found[0].summary == {
        "delta_type": "lora",
        "backbone_checkpoint_name": "bert-tiny",
        "metrics": {"accuracy": 0.1},
    }


def test_a_query_unsupported_by_a_hub_is_refused(pushed):
    with pytest.raises(ConfigError, match=r"does not list which backbone a delta fits\. Pull the deltas"):
        pushed.search(Search(backbone={}), "hf")
    with pytest.raises(ConfigError, match="does not list the size of a delta"):
        pushed.search(Search(Query(sort="size")), "hf")


@both
def test_the_history_has_the_versions_with_their_messages_and_the_aliases(hub, repo, new_checkpoint):
    first = hub.push(new_checkpoint(), f"hf:{repo}", message="first try", aliases=["stable"])
    second = hub.push(new_checkpoint(value=0.7), f"hf:{repo}", message="two epochs\n\nslower", tags=["best"])
    document = hub.document(ref(repo))[1]

    assert {name: it.digest for name, it in document.versions.items()} == {"v1": first.digest, "v2": second.digest}
    assert [it.message for it in document.versions.values()] == ["first try", "two epochs\n\nslower"]
    assert document.versions["v2"].tags == ("best",)
    assert document.aliases == {"stable": "v1"}
    assert [(it.action, it.what, it.after) for it in document.log if it.action == "push"] == [
        ("push", "v1", first.digest),
        ("push", "v2", second.digest),
    ]


@pytest.fixture
def run(proxy, token, monkeypatch):
    """The command line as a user of the hub."""
    monkeypatch.setenv("HF_ENDPOINT", proxy.url)
    monkeypatch.setenv("HF_TOKEN", token)

    def call(*arguments):
        words = list(map(str, arguments))
        done = CliRunner().invoke(app_for(words), words)
        assert done.exit_code == 0, done.output
        return done.stdout

    return call


@both
def test_the_commands_work_with_a_hub(run, repo, new_checkpoint, tmp_path):
    folder = new_checkpoint()
    pushed = json.loads(
        run("push", folder, f"hf:{repo}", "--tags", "best", "-a", "champion", "-m", "why", "--private", "--json")
    )
    pulled = json.loads(run("pull", f"hf:{repo}@champion", "--to", tmp_path / "copy", "--json"))
    shown = json.loads(run("show", f"hf:{repo}", "--json"))

    assert pulled["digest"] == shown["digest"] == pushed["digest"]
    assert (shown["message"], shown["tags"], shown["aliases"]) == ("why", ["best"], {"champion": "v1"})
    assert shown["version"] == pushed["version"]
    assert f"hf:{repo}@{shown['version']}" in run("show", f"hf:{repo}@v1")
    assert f"{pushed['digest'][:19]}\twhy" in run("log", f"hf:{repo}")
    assert run("list", "--source", "hf", "nothing-of-that-name") == ""


@both
def test_a_private_delta_is_in_no_list_of_a_stranger(run, repo, new_checkpoint, monkeypatch):
    run("push", new_checkpoint(), f"hf:{repo}", "--private")
    monkeypatch.setenv("HF_TOKEN", "")
    listed = json.loads(run("list", repo.partition("/")[2], "--source", "hf", "--json"))
    assert listed == []
