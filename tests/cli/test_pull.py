"""push and pull as a user types them."""

import json
import sys
from pathlib import Path

import pytest

from tests.checkpoints import content_of, save_checkpoint


def test_push_needs_no_other_argument_and_names_the_delta_by_its_task_and_backbone(run, ckpt):
    done = run("push", ckpt, "--tags", "sst2")
    assert done.exit_code == 0
    assert done.stdout == "local:DeltaHub/sst2-bert-tiny@v1\n"


def test_push_takes_tags_with_commas_and_repeated(run_json, ckpt):
    pushed = run_json("push", ckpt, "--tags", "sst2,lang=en", "--tags", "task=sst2")
    assert pushed["tags"] == ["lang=en", "sst2", "task=sst2"]


def test_pushing_the_same_content_again_is_no_new_version(run_json, ckpt):
    first = run_json("push", ckpt, "me/x")
    second = run_json("push", ckpt, "me/x")
    assert (first["version"], first["new"]) == ("v1", True)
    assert (second["version"], second["new"]) == ("v1", False)
    assert first["digest"] == second["digest"]


def test_a_message_for_existing_content_is_not_dropped_silently(run, ckpt):
    run("push", ckpt, "me/x", "-m", "first")
    assert "Already there, its message unchanged" in run("push", ckpt, "me/x", "-m", "second").stderr


def test_the_way_to_load_names_the_version_that_was_pulled(run, ckpt, tmp_path):
    run("push", ckpt, "me/x")
    run("push", save_checkpoint(tmp_path / "other", value=0.25), "me/x")
    assert 'from_finetuned("local:me/x@v1", backbone_model=model)' in run("pull", "me/x@v1").stderr


def test_quiet_prints_the_reference_and_nothing_else(run, ckpt):
    done = run("push", ckpt, "me/x", "--quiet")
    assert (done.stdout, done.stderr) == ("local:me/x@v1\n", "")


def test_push_tells_on_stderr_how_to_fetch_it(run, ckpt):
    assert "deltahub pull me/x" in run("push", ckpt, "me/x").stderr


def test_push_to_an_alias_moves_it(run, run_json, ckpt, tmp_path):
    run("push", ckpt, "me/x", "--alias", "champion")
    run("push", save_checkpoint(tmp_path / "other", value=2.0), "me/x", "--alias", "champion")
    assert run_json("show", "me/x")["aliases"] == {"champion": "v2"}


def test_pull_prints_the_folder_of_the_checked_files(run, ckpt):
    run("push", ckpt, "DeltaHub/sst2-t5-base")
    done = run("pull", "DeltaHub/sst2-t5-base")
    assert done.exit_code == 0
    folder = Path(done.stdout.strip())
    assert (ckpt / "delta.safetensors").read_bytes() == (folder / "delta.safetensors").read_bytes()
    assert "every byte checked" in done.stderr


def test_pull_to_a_folder_gives_the_very_files_that_were_pushed(run, ckpt, tmp_path):
    run("push", ckpt, "me/x")
    assert run("pull", "me/x", "--to", tmp_path / "out").exit_code == 0
    assert content_of(ckpt) == content_of(tmp_path / "out")


def test_pull_of_an_unknown_name_lists_where_it_looked_and_the_nearest_names(run, ckpt):
    run("push", ckpt, "DeltaHub/sst2-t5-base")
    done = run("pull", "DeltaHub/sst2-t5-bas")
    assert done.exit_code == 3
    assert done.stdout == ""
    assert "DeltaHub/sst2-t5-bas was not found. Looked in: local (" in done.stderr
    assert "The nearest names are: DeltaHub/sst2-t5-base." in done.stderr


def test_the_nearest_names_are_whole_names_also_with_dots_in_them(run, ckpt):
    run("push", ckpt, "acme/llama-3.1-sst2")
    assert "The nearest names are: acme/llama-3.1-sst2." in run("pull", "acme/llama-sst2").stderr


@pytest.mark.parametrize("version", ["v9", "champion", "sha256:0123456789abcdef"])
def test_pull_of_an_unknown_version_names_those_that_there_are(run, ckpt, version):
    run("push", ckpt, "me/x", "--alias", "prod")
    done = run("pull", f"me/x@{version}")
    assert done.exit_code == 3
    assert f"me/x@{version} was not found. Looked in: versions and aliases v1, prod, latest." in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["push", "{missing}"], 3, "There is no folder"),
        (["push", "{ckpt}", "me/../x"], 2, "cannot be a name"),
        (["push", "{ckpt}", "me/\N{CYRILLIC SMALL LETTER ES}at"], 2, "U+0441"),
        (["push", "{ckpt}", "me/x", "--tags", "task=a b?"], 2, "cannot be a value of the tag 'task'"),
        (["push", "{ckpt}", "me/x", "--alias", "v3"], 2, "cannot be an alias"),
        (["push", "{ckpt}", "me/x", "--to", "team"], 3, "The source 'team' was not found"),
        (["pull", "nowhere:me/x"], 3, "The source 'nowhere' was not found"),
    ],
)
def test_an_impossible_request_is_one_clear_error_and_an_exit_code(run, ckpt, tmp_path, arguments, code, words):
    places = {"ckpt": ckpt, "missing": tmp_path / "missing"}
    done = run(*(argument.format(**places) for argument in arguments))
    assert code == done.exit_code
    assert done.stderr.startswith("Error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_push_refuses_a_checkpoint_with_a_flipped_bit(run, run_json, ckpt):
    weights = ckpt / "delta.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = run("push", ckpt, "me/x")
    assert done.exit_code == 5
    assert "delta.safetensors is damaged: expected sha256:" in done.stderr
    assert run_json("list") == []


def test_push_of_a_pickle_says_how_to_convert_it(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"delta_type": "lora"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    done = run("push", tmp_path)
    assert done.exit_code == 1
    assert "--allow-pickle" in done.stderr
    assert "deltahub convert then writes it as safetensors" in done.stderr


def test_an_interrupted_push_publishes_nothing_and_exits_with_130(run, run_json, ckpt, faults):
    with faults.at(3, KeyboardInterrupt()):
        done = run("push", ckpt, "me/x")
    assert done.exit_code == 130
    assert "Interrupted; nothing was left half done." in done.stderr
    assert run_json("list") == []
    assert run("push", ckpt, "me/x").exit_code == 0


def test_a_full_disk_is_one_sentence(run, ckpt, faults):
    with faults.at(4, OSError(28, "No space left on device")):
        done = run("push", ckpt, "me/x")
    assert done.exit_code == 6
    assert "No space is left there" in done.stderr


@pytest.mark.parametrize("asked", [{"as_json": True, "quiet": False}, {"as_json": False, "quiet": True}])
def test_no_progress_is_shown_with_json_or_quiet(asked):
    from deltahub_cli.output import Output

    with Output(**asked).progress("Pushing", 10) as progress:
        assert progress is None


def test_progress_in_a_pipe_is_a_line_every_ten_seconds(monkeypatch, capsys):
    from deltahub_cli import progress as plain
    from deltahub_cli.output import Output

    second = 0
    monkeypatch.setattr(plain, "monotonic", lambda: float(second))
    out = Output(as_json=False, quiet=False)
    with out.progress("Pushing", 10_000) as progress, out.counting("Indexing", "deltas") as counted:
        for second in range(25):
            progress(100)
            counted(second, 2000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Pushing: 1.1 kB of 10.0 kB",
        "Indexing: 10 of 2,000 deltas",
        "Pushing: 2.1 kB of 10.0 kB",
        "Indexing: 20 of 2,000 deltas",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    from deltahub_cli.output import Output

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Output(as_json=False, quiet=False).progress("Pushing", 10) as progress:
        assert progress is not None
        progress(10)


def test_pull_to_a_folder_with_other_files_overwrites_nothing(run, ckpt, tmp_path):
    run("push", ckpt, "me/x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    done = run("pull", "me/x", "--to", tmp_path / "out")
    assert done.exit_code == 1
    assert "its README.md would be overwritten. Choose a new folder." in done.stderr
    assert content_of(tmp_path / "out") == {"README.md": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pull"], "Missing argument 'REF...'."),
        (["list", "--nope"], "No such option: --nope"),
        (["list", "--limit", "x"], "Invalid value for '--limit'"),
        (["list", "--near"], "--near needs --fits BACKBONE."),
        (["cache", "nope"], "No such command 'nope'."),
        (["nope"], "No such command 'nope'."),
        ([], "No such option: --json"),
    ],
)
def test_wrong_usage_with_json_is_json_with_its_exit_code(run, arguments, said):
    done = run(*arguments, "--json")
    failure = json.loads(done.stdout)
    assert said in failure["error"]
    assert (done.exit_code, failure["exit_code"]) == (2, 2)
    assert "Usage:" in done.stderr


def test_a_failure_with_json_is_json_with_the_exit_code_and_a_sentence_beside_it(run):
    done = run("pull", "me/none", "--json")
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == done.exit_code == 3
    assert answer["error"].startswith("The delta me/none was not found.")
    assert f"Error: {answer['error']}" in done.stderr


def test_debug_shows_a_traceback_and_changes_no_exit_code(run):
    done = run("--debug", "show", "me/none")
    assert done.exit_code == 3
    assert "Traceback" in done.stderr
    assert "Error: The delta me/none was not found." in done.stderr


@pytest.mark.parametrize("words", [["sync", "none.lock"], ["push", "{ckpt}", "me/x", "--sign", "none.pem"]])
def test_a_file_that_is_named_and_not_there_is_not_found(run, ckpt, words):
    done = run(*(word.format(ckpt=ckpt) for word in words))
    assert done.exit_code == 3
    assert f"there is no file {words[-1]}. Check the path." in done.stderr


def test_the_bar_of_a_push_moves_within_a_file(hub, checkpoint_folder, monkeypatch):
    monkeypatch.setattr("deltahub.files.atomic.CHUNK", 100)
    moved: list[int] = []
    hub.push(checkpoint_folder, "me/x", progress=moved.append)
    assert len(moved) > 5
    assert sum(moved) >= sum(path.stat().st_size for path in checkpoint_folder.iterdir())
