"""`deltahub retention`: old versions are shown, and with --apply removed; what anything names stays."""

from __future__ import annotations

import pytest

from tests.checkpoints import save_checkpoint

NOW = ("--older-than", "0s")


@pytest.fixture
def versions(run, tmp_path) -> None:
    """acme/ner from v1 to v6 and other/x@v1; v1 is the champion, v2 is pinned, v3 has the tag release."""
    for number in range(1, 7):
        folder = save_checkpoint(tmp_path / str(number), value=number)
        tags = ["--tags", "release"] if number == 3 else []
        assert run("push", folder, "acme/ner", *tags).exit_code == 0
    assert run("push", tmp_path / "1", "other/x").exit_code == 0
    assert run("alias", "acme/ner@v1", "champion").exit_code == 0
    assert run("lock", "acme/ner@v2", "-o", tmp_path / "prod.lock").exit_code == 0


def test_what_would_be_removed_is_shown_with_the_reasons_for_the_rest(run_json, versions, tmp_path):
    shown = run_json(
        "retention", "acme", "--keep", "2", "--keep-tag", "release", "--lock", tmp_path / "prod.lock", *NOW
    )
    assert shown["removed"] == ["local:acme/ner@v4"]
    assert not shown["applied"]
    assert shown["size"] > 0
    assert shown["kept"] == {
        "local:acme/ner@v1": "the alias champion points to it",
        "local:acme/ner@v2": "a lock file pins it",
        "local:acme/ner@v3": "it has the tag release",
    }
    assert run_json("show", "acme/ner@v4")["version"] == "v4"


def test_with_apply_they_are_removed_and_leave_the_reason(run, run_json, versions):
    assert run_json("retention", "acme", "--keep", "4", *NOW, "--apply")["removed"] == ["local:acme/ner@v2"]
    gone = run("show", "acme/ner@v2")
    assert gone.exit_code != 0
    assert "retention: more than 4 versions" in gone.stderr
    assert run_json("retention", "acme", "--keep", "4", *NOW)["removed"] == []  # v1 is the champion
    assert run_json("show", "other/x")["version"] == "v1"


def test_young_versions_stay(run_json, versions):
    assert run_json("retention", "acme", "--keep", "1", "--older-than", "1d")["removed"] == []


def test_a_namespace_that_does_not_exist_is_refused(run, versions):
    done = run("retention", "acmee")
    assert (done.exit_code, "The namespace acmee was not found" in done.stderr, "acme" in done.stderr) == (
        3,
        True,
        True,
    )
    assert run("retention", "acme/ner").exit_code == 2
