"""Branches: lines of versions beside the main one, at whose end "latest" is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from deltahub.errors import IntegrityError, InUseError
from deltahub.files.documents import with_checksum
from deltahub.reference import Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.edits import remove
from deltahub.registry.publish import Publication, publish
from deltahub.registry.reconcile import merged
from tests.registry.test_document import NOON, document, version


def branched() -> ReferenceDocument:
    """v1 and v2 on the main line, v3 from v1 on the branch exp."""
    found, _ = document("1", "2").with_version(replace(version("3"), parent="v1"))
    return found.with_branch("exp", "v3", NOON, "ada").with_branch("main", "v2", NOON, "ada")


def test_latest_is_the_end_of_the_main_line_not_the_newest_of_all():
    found = branched()

    assert (found.latest, found.resolve(None), found.resolve("main"), found.resolve("exp")) == ("v2", "v2", "v2", "v3")
    assert found.branches == {"exp": "v3", "main": "v2"}


def test_without_branches_the_main_line_is_all_versions():
    found = document("1", "2").with_branch("main", "v2", NOON, "ada")

    assert (found.branches, found.resolve("main")) == ({}, "v2")
    assert b"branches" not in found.to_bytes()


def test_a_push_goes_to_the_end_of_the_main_line():
    found, name = branched().with_version(version("4"))

    assert (name, found.latest) == ("v4", "v4")
    assert found.branches == {"exp": "v3"}


def test_the_main_branch_can_go_back():
    found = document("1", "2").with_branch("main", "v1", NOON, "ada")

    assert (found.latest, list(found.history("v1"))) == ("v1", ["v1"])
    assert found.with_version(version("2"))[0].latest == "v1"  # a push of what is there is no new version


def test_the_history_of_a_version_continues_past_removed_parents():
    found = branched()
    assert list(found.history("v3")) == ["v3", "v1"]
    assert list(found.history("v2")) == ["v2", "v1"]

    longer, _ = document("1", "2", "3").without_version("v2", NOON, "ada").with_version(version("4"))
    assert list(longer.history("v4")) == ["v4", "v3", "v1"]


def test_moves_of_branches_are_logged():
    moves = [(move.action, move.what, move.before, move.after) for move in branched().log]

    assert moves[-2:] == [("branch", "exp", None, "v3"), ("branch", "main", "v3", "v2")]


def test_when_its_end_is_removed_the_main_line_falls_back_to_its_own_history():
    found, _ = branched().with_version(replace(version("4"), parent="v2"))

    assert found.without_version("v4", NOON, "ada").latest == "v2"


def test_the_end_of_a_branch_is_not_removed(registry, new_checkpoint):
    from deltahub.checkpoint.checkpoint import describe

    for value in (1.0, 2.0):
        folder = new_checkpoint(value=value)
        publish(registry, Publication(Reference.parse("acme/ner"), describe(folder), folder))
    registry.update("acme/ner", lambda found: found.with_branch("exp", "v1", NOON, "ada"))

    with pytest.raises(InUseError, match="the branch exp points to it"):
        remove(registry, "acme/ner", "v1")


def test_branches_are_read_back_and_a_branch_of_nothing_is_damage():
    found = branched()
    assert ReferenceDocument.from_bytes(found.to_bytes()) == found

    damaged = {**json.loads(found.to_bytes()), "branches": {"exp": "v9"}}
    with pytest.raises(IntegrityError, match="the branch 'exp' of v9, which is not there"):
        ReferenceDocument.from_bytes(with_checksum(damaged))


def test_branches_come_with_a_copy_even_into_a_delta_with_a_history_of_its_own():
    mine = document("1").with_tags("v1", ["mine"], (), NOON, "bob")
    found = merged(mine, branched(), NOON, "bob")

    assert found.branches == {"exp": "v3", "main": "v2"}
