"""push and alias with --expect: an alias moves only from where its user saw it; and amend."""

from __future__ import annotations

import pytest

from tests.checkpoints import save_checkpoint


@pytest.fixture
def ckpts(run, tmp_path):
    """Four deltas; the first two are versions of one, and prod is the first."""
    made = [save_checkpoint(tmp_path / f"{number}", value=number / 4) for number in range(4)]
    assert run("push", made[0], "me/x", "--alias", "prod", "--expect", "none").exit_code == 0
    assert run("push", made[1], "me/x").exit_code == 0
    return made


def test_a_push_moves_an_alias_from_where_it_is_expected(run, run_json, ckpts):
    assert run("push", ckpts[2], "me/x", "--alias", "prod", "--expect", "v1").exit_code == 0
    assert run_json("show", "me/x")["aliases"] == {"prod": "v3"}


@pytest.mark.parametrize(
    ("alias", "expect", "said"),
    [
        ("prod", "v2", "expected v2, found v1"),
        ("prod", "none", "expected no entry, found v1"),
        ("beta", "v1", "expected v1, found no entry"),
    ],
)
def test_a_push_that_expects_an_alias_elsewhere_says_both_and_publishes_nothing(
    run, run_json, ckpts, alias, expect, said
):
    before = run_json("show", "me/x")
    done = run("push", ckpts[2], "me/x", "--alias", alias, "--expect", expect)
    assert done.exit_code == 4
    assert (
        f"Error: The alias me/x@{alias}: {said}. It may have been changed concurrently; nothing was overwritten"
        in done.stderr
    )
    assert run_json("show", "me/x") == before


def test_expect_takes_a_digest_or_latest(run, run_json, ckpts):
    digest = run_json("show", "me/x@v1")["digest"]
    assert run("alias", "me/x", "prod", "--expect", "latest").exit_code == 4
    assert run("alias", "me/x", "prod", "--expect", digest[:19]).exit_code == 0
    assert run("push", ckpts[2], "me/x", "--alias", "prod", "--expect", "latest").exit_code == 0
    assert run_json("show", "me/x")["aliases"] == {"prod": "v3"}


def test_an_amended_version_is_found_by_its_metric_and_keeps_its_digest(run, run_json, ckpts, tmp_path):
    (tmp_path / "card.md").write_text("# Better")
    before = run_json("show", "me/x")
    done = run_json("amend", "me/x", "--metric", "accuracy=0.93", "-m", "first", "--card", tmp_path / "card.md")
    assert (done["digest"], done["message"]) == (before["digest"], "first")
    assert [it["name"] for it in run_json("list", "--metric", "accuracy>0.9")] == ["me/x"]
    shown = run_json("show", "me/x@v2")
    assert (shown["card"], shown["metrics"][-1]["metric_value"]) == ("# Better", 0.93)
    assert {move["action"] for move in run_json("log", "me/x")} >= {"amend"}
    for wrong in (["me/x"], ["me/x", "--metric", "accuracy"], ["me/x", "--metric", "accuracy=high"]):
        assert run("amend", *wrong).exit_code == 2


def test_of_two_pushes_that_saw_the_same_the_second_is_refused(run, run_json, ckpts):
    seen = run_json("show", "me/x")["aliases"]["prod"]
    done = [run("push", folder, "me/x", "--alias", "prod", "--expect", seen).exit_code for folder in ckpts[2:]]
    assert done == [0, 4]
    assert run_json("show", "me/x")["aliases"] == {"prod": "v3"}


def test_of_several_aliases_each_must_be_where_it_is_expected(run, run_json, ckpts):
    done = run("push", ckpts[2], "me/x", "--alias", "beta", "--alias", "prod", "--expect", "v1")
    assert done.exit_code == 4
    assert run("alias", "me/x@v1", "beta").exit_code == 0
    assert run("push", ckpts[2], "me/x", "--alias", "beta", "--alias", "prod", "--expect", "v1").exit_code == 0
    assert run_json("show", "me/x")["aliases"] == {"beta": "v3", "prod": "v3"}


def test_expecting_without_an_alias_is_refused(run, run_json, ckpts):
    done = run("push", ckpts[2], "me/x", "--expect", "v1")
    assert done.exit_code == 2
    assert "--expect says where an alias must point now" in " ".join(done.stderr.split())
    assert run_json("show", "me/x")["aliases"] == {"prod": "v1"}


@pytest.mark.parametrize(("expect", "said"), [("v2", "expected v2, found v1"), ("none", "expected no entry, found v1")])
def test_an_alias_that_is_expected_elsewhere_is_not_moved(run, run_json, ckpts, expect, said):
    done = run("alias", "me/x@v2", "prod", "--expect", expect)
    assert done.exit_code == 4
    assert f"The alias me/x@prod: {said}" in done.stderr
    assert run("alias", "me/x@v2", "prod", "--expect", "v1").exit_code == 0
    assert run("alias", "me/x@v2", "beta", "--expect", "none").exit_code == 0
    assert run_json("show", "me/x")["aliases"] == {"beta": "v2", "prod": "v2"}


def test_a_protected_alias_moves_by_its_approval_and_the_log_says_so(run, run_json, ckpts, tmp_path, monkeypatch):
    rules = tmp_path / "rules.json"
    rules.write_text('{"rules": [{"deltas": "me/*", "aliases": ["prod"], "approvals": 1}]}')
    assert run("policy", "set", rules, "-m", "careful").exit_code == 0
    assert run_json("policy", "show")["rules"][0]["approvals"] == 1
    refused = run("alias", "me/x@v2", "prod", "-m", "better")
    assert (refused.exit_code, "1 other must approve it, and 0 did" in refused.stderr) == (1, True)
    assert run_json("alias", "me/x@v2", "prod", "--ask", "-m", "better")["request"] == "r1"
    assert run("approve", "me/x", "r1").exit_code == 1
    monkeypatch.setenv("DELTAHUB_AUTHOR", "bob")
    assert [it["request"] for it in run_json("requests", "me/x")] == ["r1"]
    assert run_json("approve", "me/x", "r1")["version"] == "v2"
    assert run_json("log", "me/x")[-1]["message"] == "better; approved by bob"
    assert run("reject", "me/x", "r1").exit_code == 3
