"""Many deltas are pushed by one command; one that cannot be is named, and the others are."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltahub.cache.cache import Cache
from deltahub.hub.hub import Hub
from deltahub.signing import PrivateKey
from tests.foreign import peft
from tests.keys import new_key, public_of


@pytest.fixture
def runs(new_checkpoint, tmp_path):
    """Three folders with deltas, one of them within a folder of another name."""
    for number, name in enumerate(("first run", "second", "third")):
        target = tmp_path / "runs" / name
        target.parent.mkdir(exist_ok=True)
        new_checkpoint(value=number).rename(target)
    return tmp_path / "runs"


def folders(runs) -> list[str]:
    return [str(path) for path in sorted(runs.iterdir())]


def test_many_folders_are_named_after_themselves_in_a_namespace(run, runs):
    done = run("push", *folders(runs), "--namespace", "acme", "--tags", "best", "--json")
    assert done.exit_code == 0, done.stderr
    pushed = json.loads(done.stdout)
    assert [it["reference"] for it in pushed] == [
        "local:acme/first-run@v1",
        "local:acme/second@v1",
        "local:acme/third@v1",
    ]
    assert {tuple(it["tags"]) for it in pushed} == {("best",)}
    assert [it["folder"] for it in pushed] == folders(runs)
    assert run("list", "--quiet", "--sort", "name").stdout.split() == ["acme/first-run", "acme/second", "acme/third"]


def test_one_that_cannot_be_pushed_is_named_and_the_others_are_pushed(run, runs):
    (runs / "second" / "delta.safetensors").write_bytes(b"x")
    done = run("push", *folders(runs), "--namespace", "acme")
    assert done.exit_code == 5
    assert f"Error: {runs / 'second'}: " in done.stderr
    assert "2 of 3 pushed." in done.stderr
    assert run("list", "--quiet", "--sort", "name").stdout.split() == ["acme/first-run", "acme/third"]


def test_without_a_namespace_each_is_named_as_a_push_names_it(run, runs):
    done = run("push", *folders(runs), "--quiet")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split() == [f"local:DeltaHub/lora-bert-tiny@v{number}" for number in (1, 2, 3)]


def test_the_second_of_two_is_a_name_unless_it_is_a_path(run, runs, monkeypatch):
    monkeypatch.chdir(runs)
    assert run("push", "second", "acme/ner", "--quiet").stdout == "local:acme/ner@v1\n"
    assert run("push", "./second", "./third", "--namespace", "zoo", "--quiet").stdout.split() == [
        "local:zoo/second@v1",
        "local:zoo/third@v1",
    ]
    assert len(run("push", "./second", "./third", "--quiet").stdout.split()) == 2


def test_a_name_that_is_a_folder_with_a_delta_too_is_refused_with_both_ways_out(run, runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    done = run("push", "runs/second", "runs/third")
    assert done.exit_code == 2
    assert "runs/third can be a name and is a folder with a delta" in " ".join(done.stderr.split())
    assert run("push", "runs/second", "local:runs/third", "--quiet").stdout == "local:runs/third@v1\n"


def test_a_second_folder_that_is_not_there_is_an_error_and_not_a_name(run, run_json, runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    done = run("push", "runs/second", "runs/fourth")
    assert done.exit_code == 2
    assert "there is a folder runs in which no fourth holds a delta" in " ".join(
        re.sub("[│╭╰─]", "", done.stderr).split()
    )
    assert run_json("list") == []
    assert run("push", "runs/second", "local:runs/fourth", "--quiet").stdout == "local:runs/fourth@v1\n"


def test_of_many_folders_none_is_published_if_one_is_mistyped(run, run_json, runs):
    done = run("push", *folders(runs), runs / "fourth")
    assert done.exit_code == 3
    assert f"There is no folder {runs / 'fourth'}" in done.stderr
    assert run_json("list") == []


def test_a_file_among_the_folders_and_an_empty_folder_are_named_and_the_deltas_are_pushed(run, runs):
    (runs / "notes.txt").write_text("which is the best")
    (runs / "empty").mkdir()
    done = run("push", *folders(runs), "--namespace", "acme", "--json")
    assert done.exit_code == 1
    results = {entry["folder"]: entry for entry in json.loads(done.stdout)}
    assert "is a file, and a delta is a folder" in results[str(runs / "notes.txt")]["error"]
    assert "one with a delta of PEFT, AdapterHub" in results[str(runs / "empty")]["error"]
    assert sum("reference" in entry for entry in results.values()) == 3


def test_folders_that_would_get_the_same_name_are_refused_and_the_others_are_pushed(run, runs, new_checkpoint):
    (runs.parent / "other").mkdir()
    new_checkpoint(value=7).rename(runs.parent / "other" / "second")
    done = run("push", *folders(runs), runs.parent / "other" / "second", "--namespace", "acme")
    assert done.exit_code == 2
    assert done.stderr.count("would both be named acme/second") == 2
    assert run("list", "--quiet", "--sort", "name").stdout.split() == ["acme/first-run", "acme/third"]
    assert run("push", runs / "third", runs / "third", "--namespace", "acme").exit_code == 0


def test_a_namespace_that_is_not_valid_is_one_error(run, runs):
    done = run("push", *folders(runs), "--namespace", "a b")
    assert done.exit_code == 2
    assert done.stderr.count("a b") == 1


def test_a_name_in_the_folder_of_a_registry_is_published_there(run, run_json, runs, tmp_path):
    done = run("push", runs / "second", f"{tmp_path / 'registry'}:acme/ner", "--quiet")
    assert done.stdout == f"{tmp_path / 'registry'}:acme/ner@v1\n"
    assert run_json("list") == []


@pytest.mark.parametrize("option", [["--alias", "champion"], ["--private"]])
def test_options_for_one_delta_are_refused_for_many(run, runs, option):
    done = run("push", *folders(runs), "--namespace", "acme", *option)
    assert done.exit_code == 2
    assert f"{option[0]} is for one delta" in " ".join(done.stderr.split())


def test_many_are_signed_by_one_key(run, runs, tmp_path):
    key = new_key(tmp_path / "release.pem")
    run("registry", "add", "team", tmp_path / "team", "--require-signature", "--trust", public_of(key))
    done = run("push", *folders(runs), "--to", "team", "--namespace", "acme", "--sign", key, "--json")
    assert done.exit_code == 0, done.stderr
    pushed = json.loads(done.stdout)
    assert {it["signed_by"] for it in pushed} == {PrivateKey(key).public.id}
    assert run("pull", *(it["reference"] for it in pushed)).exit_code == 0


def test_of_many_that_are_not_signed_each_is_refused_where_signatures_are_asked_for(run, runs, tmp_path):
    key = new_key(tmp_path / "release.pem")
    run("registry", "add", "team", tmp_path / "team", "--require-signature", "--trust", public_of(key))
    pushed = json.loads(run("push", *folders(runs), "--to", "team", "--namespace", "acme", "--json").stdout)
    assert {it["signed_by"] for it in pushed} == {None}
    done = run("pull", *(it["reference"] for it in pushed))
    assert done.exit_code == 5
    assert [f"{it['reference']} is refused: expected a signature by" in done.stderr for it in pushed] == [True] * 3


@pytest.mark.parametrize("wrong", ["release.pem.pub", "none.pem"])
def test_with_a_key_that_cannot_sign_none_of_many_is_published(run, run_json, runs, tmp_path, wrong):
    new_key(tmp_path / "release.pem")
    done = run("push", *folders(runs), "--namespace", "acme", "--sign", tmp_path / wrong)
    assert done.exit_code != 0
    assert wrong in done.stderr
    assert run_json("list") == []


def test_many_that_go_to_a_hub_cannot_be_signed_and_it_is_not_asked(run, runs, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    key = new_key(tmp_path / "release.pem")
    done = run("push", *folders(runs), "--to", "hf", "--namespace", "acme", "--sign", key)
    assert done.exit_code == 2
    assert "is not a registry, and only registries support this" in done.stderr


def test_pushing_the_same_again_adds_nothing(run, runs):
    run("push", *folders(runs), "--namespace", "acme")
    again = run("push", *folders(runs), "--namespace", "acme", "--json")
    assert [(it["version"], it["new"]) for it in json.loads(again.stdout)] == [("v1", False)] * 3


def test_a_source_that_takes_one_at_a_time_gets_them_one_by_one(runs, registry, tmp_path):
    class Single:
        """A source as its protocol says, over a registry."""

        name, place, remote = "single", "single", False

        def publish(self, publication, progress=None):
            from deltahub.sources.registry import RegistrySource

            return RegistrySource(registry, tmp_path).publish(publication, progress)

    (runs / "third" / "delta.safetensors").unlink()
    hub = Hub({"single": Single()}, Cache(tmp_path / "cache"))
    done = hub.push_many(sorted(runs.iterdir()), "acme")
    assert [str(it.reference.path) for it in done[:2]] == ["acme/first-run", "acme/second"]
    assert "delta.safetensors is missing" in str(done[2])


def test_the_library_pushes_many_too(runs):
    done = Hub.open().push_many(sorted(runs.iterdir()), "acme", message="all")
    assert [it.new for it in done] == [True, True, True]


@pytest.mark.parametrize("command", ["push", "convert", "inspect"])
def test_a_broken_config_of_an_adapter_is_the_error(run, tmp_path, command):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", ')
    more = {"push": ["acme/x"], "convert": [tmp_path / "out", "--format", "peft"]}.get(command, [])
    done = run(command, tmp_path, *more)
    assert done.exit_code == 1
    assert "adapter_config.json is not JSON" in done.stderr


def zeros(*names) -> dict[str, np.ndarray]:
    """Rewrite the weights of an adapter of PEFT: ones, and zeros where named."""
    sides = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    tensors = {f"base_model.model.q.{side}": np.ones((2, 2), np.float32) for side in sides[: 2 + ("dora" in names)]}
    return {
        name: values * (not any(name.endswith(f"{zero}.weight") for zero in names)) for name, values in tensors.items()
    }


@pytest.mark.parametrize(
    ("names", "refused"), [(["lora_B"], True), (["lora_A"], True), ([], False), (["lora_B", "dora"], False)]
)
def test_a_lora_whose_product_is_zero_is_pushed_only_if_the_user_insists(run, tmp_path, names, refused):
    folder = tmp_path / "adapter"
    folder.mkdir()
    peft(folder)
    save_file(zeros(*names), folder / "adapter_model.safetensors")
    done = run("push", folder, "acme/sums")
    assert (done.exit_code == 1) is refused
    assert ("changes no output of its backbone" in done.stderr) is refused
    assert run("push", folder, "acme/sums", "--allow-untrained").exit_code == 0


def test_show_does_not_count_the_parameters_of_a_pickle(run, run_json, tmp_path):
    peft(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    assert run("push", tmp_path, "acme/sums", "--allow-pickle").exit_code == 0
    shown = run("show", "acme/sums").stdout
    assert "unknown: its weights are a pickle" in " ".join(shown.split())
    assert run_json("show", "acme/sums")["parameters"] == {"total": None, "delta": None}
    assert "an unknown number of parameters" in run("inspect", tmp_path).stderr
