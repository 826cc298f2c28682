"""A delta of another library goes through every command as it is, its bytes unchanged."""

from __future__ import annotations

import json

import pytest

from tests.foreign import CARD, FOLDERS, opendelta, peft


@pytest.fixture
def adapter(tmp_path):
    """The folder of an adapter of PEFT, as a trainer leaves it."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    peft(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "optimizer.pt").write_bytes(b"state")
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_each_format_is_pushed_found_and_pulled_as_it_is(run, run_json, tmp_path, name):
    write, _ = FOLDERS[name]
    folder, to = tmp_path / "mine", tmp_path / "pulled"
    folder.mkdir()
    write(folder)
    pushed = run_json("push", folder, "acme/mine", "--allow-pickle")
    run("pull", "acme/mine", "--to", to)

    assert {path.name: path.read_bytes() for path in to.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert run_json("show", "acme/mine")["config"]["format"] == name
    assert [it["name"] for it in run_json("list", "acme")] == ["acme/mine"]
    assert run_json("inspect", to)["digest"] == pushed["digest"]
    assert run("verify", "acme/mine").exit_code == 0
    assert run("pull", "acme/mine", "--to", to).exit_code == 0  # again, over the same delta


def test_its_own_config_and_card_are_searched(run, run_json, adapter):
    run("push", adapter, "acme/sums")
    for words in (
        ["--type", "lora"],
        ["rank=4"],
        ["q_proj"],
        ["llama-2"],
        ["--tag", "sft"],
        ["--metric", "accuracy>0.4"],
    ):
        assert [it["name"] for it in run_json("list", *words)] == ["acme/sums"], words
    for words in (["--type", "adapter"], ["rank=5"], ["--metric", "accuracy>0.6"]):
        assert run_json("list", *words) == [], words


def test_show_states_its_options_and_base_model(run, adapter):
    run("push", adapter, "acme/sums")
    shown = run("show", "acme/sums").stdout
    for fact in ("peft lora", "rank=4 targets=q_proj", "meta-llama/Llama-2-7b-hf", "abc", "mit"):
        assert fact in shown


def test_a_push_says_what_it_left_out(run, run_json, adapter):
    assert run_json("push", adapter, "acme/sums")["left_out"] == ["optimizer.pt"]
    assert "Left out, as not part of the delta: optimizer.pt" in run("push", adapter, "acme/sums").stderr


def test_without_a_name_it_is_named_by_its_method_and_base_model(run, adapter):
    assert run("push", adapter, "--quiet").stdout == "local:DeltaHub/lora-Llama-2-7b-hf@v1\n"


def test_a_pickle_is_refused_with_the_way_out(run, tmp_path):
    opendelta(tmp_path)
    done = run("push", tmp_path, "acme/old")
    assert done.exit_code != 0
    assert "--allow-pickle" in done.stderr


def test_a_team_migrates_in_one_command_and_learns_what_was_not_taken(run, tmp_path):
    for name in ("first", "second", "old", "notes"):
        (tmp_path / name).mkdir()
    for name in ("first", "second"):
        peft(tmp_path / name)
    opendelta(tmp_path / "old")
    done = run("push", *sorted(tmp_path.iterdir()), "--namespace", "acme", "--json")
    results = {it["folder"].rpartition("/")[2]: it for it in json.loads(done.stdout)}

    assert done.exit_code != 0
    assert [results[name]["reference"] for name in ("first", "second")] == [
        "local:acme/first@v1",
        "local:acme/second@v1",
    ]
    assert "holds no delta" in results["notes"]["error"]
    assert "is a Python pickle" in results["old"]["error"]
    assert "2 of 4 pushed." in done.stderr


@pytest.mark.parametrize(
    ("name", "way_out"), [("peft", "deltahub pull REF --to DIR"), ("gguf", "needs the backbone of the delta: ")]
)
def test_a_delta_that_deltahub_did_not_save_is_not_written_for_peft_without_its_backbone(run, tmp_path, name, way_out):
    write, _ = FOLDERS[name]
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder)
    run("push", folder, "acme/mine")
    done = run("pull", "acme/mine", "--format", "peft", "--to", tmp_path / "written")
    assert done.exit_code == 2
    assert way_out in " ".join(done.stderr.split())
    assert not (tmp_path / "written").exists()


def test_it_is_bundled_locked_and_copied_as_any_delta(run, run_json, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digest = run_json("push", adapter, "acme/sums")["digest"]
    assert run("lock", "acme/sums").exit_code == 0
    assert run("sync").exit_code == 0
    assert run("registry", "add", "team", tmp_path / "team").exit_code == 0
    assert run("copy", "local", "team", "acme/sums").exit_code == 0
    assert run_json("show", "team:acme/sums")["digest"] == digest
    assert run("bundle", "export", "acme/sums", "-o", tmp_path / "sums.tar").exit_code == 0


def test_a_folder_of_another_library_that_is_damaged_is_found_by_verify(run, adapter):
    assert run("verify", adapter).exit_code == 0
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert run("verify", adapter).exit_code != 0
