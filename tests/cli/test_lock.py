"""lock, sync and rm --lock as a user types them."""

from __future__ import annotations

import json

import pytest

from tests.checkpoints import save_checkpoint


@pytest.fixture
def two(run, tmp_path) -> None:
    """A delta with two versions; champion is the first."""
    for value in (0.0, 1.0):
        assert run("push", save_checkpoint(tmp_path / str(value), value=value), "me/x").exit_code == 0
    assert run("alias", "me/x@v1", "champion").exit_code == 0


@pytest.fixture
def file(run, two, tmp_path):
    """A lock file that pins champion."""
    path = tmp_path / "deltahub.lock"
    assert run("lock", "me/x@champion", "-o", path).exit_code == 0
    return path


def test_locking_again_says_what_changed(run, file):
    assert run("lock", "-o", file).stdout.split("\t")[3] == "\n"
    run("alias", "me/x@v2", "champion")
    assert "was local:me/x@v1" in run("lock", "-o", file).stdout
    assert json.loads(file.read_text())["deltas"]["me/x@champion"]["version"] == "v2"


def test_adding_keeps_what_is_locked_and_naming_replaces_it(run, run_json, file):
    assert sorted(run_json("lock", "me/x@v2", "--add", "-o", file)) == ["me/x@champion", "me/x@v2"]
    assert sorted(run_json("lock", "me/x", "-o", file)) == ["me/x"]


def test_a_pull_with_a_lock_file_takes_locked_versions_only(run, run_json, file, monkeypatch):
    monkeypatch.setenv("DELTAHUB_LOCK", str(file))
    assert run_json("pull", "me/x")["version"] == "v1"
    done = run("pull", "me/y")
    assert done.exit_code == 3
    assert "me/y is not locked in" in done.stderr


@pytest.mark.parametrize("options", [[], ["--keep"]])
def test_sync_leaves_the_deltas_of_other_projects_in_the_cache(run, run_json, file, options):
    run("pull", "me/x@v2")
    kept = run_json("sync", file, *options)
    assert (len(kept["held"]), kept["removed"], len(run_json("cache", "list"))) == (1, [], 2)


def test_sync_pulls_locked_deltas_and_with_prune_removes_the_rest(run, run_json, file):
    run("pull", "me/x@v2")
    assert run("sync", file, "--keep", "--prune").exit_code == 2
    done = run_json("sync", file, "--prune")
    assert len(done["removed"]) == 1
    assert [entry["digest"] for entry in run_json("cache", "list")] == [held["digest"] for held in done["held"]]


def test_a_locked_version_is_not_removed(run, file, monkeypatch):
    run("alias", "me/x", "champion", "--remove")
    assert "the lock file pins it" in run("rm", "me/x@v1", "--lock", file).stderr
    monkeypatch.setenv("DELTAHUB_LOCK", str(file))
    assert run("rm", "me/x@v1").exit_code == 1
    assert run("rm", "me/x@v2").exit_code == 0


def test_locking_without_a_file_or_a_name_says_so(run, tmp_path):
    done = run("lock", "-o", tmp_path / "nothing.lock")
    assert done.exit_code == 3
    assert f"Reading the lock file failed: there is no file {tmp_path / 'nothing.lock'}" in done.stderr
