"""gc as a user types it."""

from __future__ import annotations

import pytest

from tests.checkpoints import save_checkpoint


@pytest.fixture
def removed(run, tmp_path) -> None:
    """A delta of whose two versions one was removed."""
    for value in (0.0, 1.0):
        assert run("push", save_checkpoint(tmp_path / str(value), value=value), "me/x").exit_code == 0
    assert run("rm", "me/x@v1").exit_code == 0


def test_gc_says_what_waits_and_then_what_it_freed(run, run_json, removed):
    first = run("gc")
    assert first.stdout == "0 deleted, 0 B freed.\n"
    assert "3 more, " in first.stderr
    assert "are unused; the first may go from 20" in first.stderr
    trial = run_json("gc", "--grace", "0s", "--dry-run")
    assert (len(trial["deleted"]), trial["dry_run"]) == (3, True)
    assert run_json("gc", "--grace", "0s") == {**trial, "dry_run": False}
    assert run("verify").exit_code == 0
    assert run_json("gc", "--grace", "0s")["deleted"] == []


def test_an_age_that_is_none_is_wrong_usage(run):
    done = run("gc", "--grace", "soon")
    assert done.exit_code == 2
    assert "got 'soon'" in " ".join(done.stderr.split())
