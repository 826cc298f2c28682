"""rm, undo and rename as a user types them."""

from __future__ import annotations

import pytest

from tests.checkpoints import save_checkpoint


@pytest.fixture
def two(run, tmp_path) -> None:
    """A delta with two versions; champion was v1 and is v2."""
    for value in (0.0, 1.0):
        folder = save_checkpoint(tmp_path / str(value), value=value)
        assert run("push", folder, "me/x", "--alias", "champion").exit_code == 0


def test_a_removed_version_is_reported_as_removed(run, run_json, two):
    removed = run_json("rm", "me/x@v1", "-m", "wrong data")
    assert (removed["removed"], removed["left"]) == ("local:me/x@v1", ["v2"])
    shown = run_json("show", "me/x")
    assert (list(shown["versions"]), shown["removed"]["v1"]["message"]) == (["v2"], "wrong data")
    done = run("pull", "me/x@v1")
    assert done.exit_code == 3
    assert "me/x@v1 was removed at " in done.stderr
    assert "by ada: wrong data. Still there: v2." in done.stderr


def test_the_target_of_an_alias_is_not_removed(run, two):
    done = run("rm", "me/x@champion")
    assert done.exit_code == 1
    assert "me/x@v2 stays as it is: the alias champion points to it." in done.stderr


def test_rm_wants_to_know_which_version(run, two):
    done = run("rm", "me/x")
    assert done.exit_code == 2
    assert "Say which version of me/x is to go, e.g. me/x@v1" in done.stderr


def test_undo_goes_back_one_move_at_a_time(run, two):
    assert run("undo", "me/x").stdout == "local:me/x@champion is v1 again\n"
    assert run("undo", "me/x").stdout == "local:me/x@champion is removed\n"
    done = run("undo", "me/x")
    assert done.exit_code == 3
    assert "A move of an alias of me/x was not found." in done.stderr
    assert [line.split("\t")[2] for line in run("log", "me/x").stdout.splitlines()].count("undo") == 2


def test_an_alias_moves_only_from_where_it_is_expected(run, two):
    done = run("alias", "me/x@v1", "champion", "--expect", "v1")
    assert done.exit_code == 4
    assert "expected v1, found v2" in done.stderr
    assert run("alias", "me/x@v1", "champion", "--expect", "v2").exit_code == 0
    assert run("alias", "me/x@v1", "prod", "--expect", "none").exit_code == 0


def test_a_rename_to_the_same_name_says_so(run, two):
    name = run("list", "--quiet").stdout.split()[0]
    done = run("rename", name, name)
    assert done.exit_code == 0
    assert "It has that name already." in done.stderr


def test_a_renamed_delta_is_found_under_both_names_and_the_old_one_says_so(run, run_json, two):
    assert run_json("rename", "me/x", "me/y") == {"reference": "local:me/y", "before": "me/x"}
    pulled = run("pull", "me/x")
    assert pulled.exit_code == 0
    assert "local:me/y@v2" in pulled.stderr
    assert [line["name"] for line in run_json("list")] == ["me/y"]
    assert run("rename", "me/y", "moon:me/z").exit_code == 2
    assert run("rename", "me/y@v1", "me/z").exit_code == 2
