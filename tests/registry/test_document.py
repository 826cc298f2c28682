"""The reference document: versions that stay, aliases that move, and a log of every move."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.checkpoint.manifest import FILES, Manifest
from deltahub.errors import CheckpointError, IntegrityError, NotFoundError
from deltahub.files.documents import with_checksum
from deltahub.reference import Digest
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, Moving, Removed, Version, summary_of

GOLDEN = Path(__file__).parents[1] / "golden/reference.v1.json"
NOON = "2026-01-02T12:00:00Z"


def version(digit: str, **facts: object) -> Version:
    return Version(Digest(f"sha256:{digit * 64}"), NOON, "ada", **facts)


def document(*digits: str) -> ReferenceDocument:
    found = ReferenceDocument("acme/ner")
    for digit in digits:
        found, _ = found.with_version(version(digit))
    return found


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
steps = st.lists(
    st.tuples(st.just("push"), st.sampled_from("0123456789abcdef"), st.lists(texts, max_size=2))
    | st.tuples(st.just("alias"), texts, st.none() | st.integers(1, 9))
    | st.tuples(st.just("branch"), st.sampled_from(["main", "exp"]), st.integers(1, 9))
    | st.tuples(st.just("tag"), st.integers(1, 9), st.lists(texts, max_size=2), st.lists(texts, max_size=2)),
    max_size=8,
)


def played(history) -> ReferenceDocument:
    found = document("0")
    for kind, *facts in history:
        names = list(found.versions)
        if kind == "push":
            found, _ = found.with_version(version(facts[0], tags=tuple(sorted(set(facts[1])))))
        elif kind == "alias":
            target = None if facts[1] is None else names[facts[1] % len(names)]
            found = found.with_alias(facts[0], target, NOON, "ada")
        elif kind == "branch":
            found = found.with_branch(facts[0], names[facts[1] % len(names)], NOON, "ada")
        else:
            found = found.with_tags(names[facts[0] % len(names)], facts[1], facts[2], NOON, "ada")
    return found


@given(steps)
def test_every_document_is_read_back_as_it_was_written(history):
    expected = played(history)

    assert ReferenceDocument.from_bytes(expected.to_bytes()) == expected


@given(steps)
def test_equal_histories_give_equal_bytes(history):
    assert played(history).to_bytes() == played(history).to_bytes()


@given(steps, steps)
def test_a_version_keeps_its_digest_for_ever_and_the_log_only_grows(first, then):
    before = played(first)
    after = played(first + then)

    assert {name: after.versions[name].digest for name in before.versions} == {
        name: entry.digest for name, entry in before.versions.items()
    }
    assert after.log[: len(before.log)] == before.log


def test_the_golden_document_is_still_written_and_read():
    expected, _ = ReferenceDocument("acme/ner").with_version(
        Version(
            Digest(f"sha256:{'1' * 64}"),
            "2026-01-02T03:04:05Z",
            "ada",
            "first",
            ("task=sst2",),
            {"delta_type": "lora", "size": 10, "parameters": 10, "metrics": {"accuracy": 0.5}},
        )
    )
    expected, _ = expected.with_version(Version(Digest(f"sha256:{'2' * 64}"), "2026-01-02T03:04:06Z", "bob"))
    expected = expected.with_alias("champion", "v1", "2026-01-02T03:04:07Z", "ada")
    expected = expected.with_alias("champion", "v2", "2026-01-02T03:04:08Z", "ada")
    expected = expected.with_tags("v2", ["best"], [], "2026-01-02T03:04:09Z", "bob")

    assert expected.to_bytes() == GOLDEN.read_bytes()
    assert ReferenceDocument.from_bytes(GOLDEN.read_bytes()) == expected


def test_versions_are_numbered_in_order_beyond_nine():
    found = document(*"0123456789ab")

    assert list(ReferenceDocument.from_bytes(found.to_bytes()).versions) == [f"v{number}" for number in range(1, 13)]
    assert found.latest == "v12"


def test_a_number_is_never_given_twice():
    data = json.loads(document("0", "1", "2").to_bytes())
    del data["versions"]["v2"]
    found, name = ReferenceDocument.from_bytes(with_checksum(data)).with_version(version("3"))

    assert name == "v4"
    assert list(found.versions) == ["v1", "v3", "v4"]


def test_the_same_content_again_is_no_new_version_but_may_bring_tags():
    found, name = document("0", "1").with_version(version("0", tags=("best",)))

    assert name == "v1"
    assert list(found.versions) == ["v1", "v2"]
    assert found.versions["v1"].tags == ("best",)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, "v3"),
        ("latest", "v3"),
        ("v1", "v1"),
        ("champion", "v2"),
        (f"sha256:{'1' * 64}", "v2"),
        (f"sha256:{'1' * 12}", "v2"),
    ],
)
def test_a_version_an_alias_or_a_digest_means_a_version(asked, expected):
    assert document("0", "1", "2").with_alias("champion", "v2", NOON, "ada").resolve(asked) == expected


@pytest.mark.parametrize("asked", ["v9", "champio", f"sha256:{'9' * 12}"])
def test_an_unknown_version_lists_what_there_is(asked):
    found = document("0").with_alias("champion", "v1", NOON, "ada")
    with pytest.raises(NotFoundError) as caught:
        found.resolve(asked)
    assert f"acme/ner@{asked} was not found. Looked in: versions and aliases v1, champion, latest." in str(caught.value)


def test_the_nearest_alias_is_named():
    with pytest.raises(NotFoundError, match="The nearest names are: champion"):
        document("0").with_alias("champion", "v1", NOON, "ada").resolve("champio")


def test_a_digest_that_means_two_versions_means_none():
    found = ReferenceDocument("acme/ner")
    for end in "ab":
        found, _ = found.with_version(Version(Digest(f"sha256:{'1' * 63}{end}"), NOON, "ada"))
    with pytest.raises(NotFoundError, match=r"versions and aliases v1, v2"):
        found.resolve(f"sha256:{'1' * 12}")
    assert found.resolve(f"sha256:{'1' * 63}b") == "v2"


def test_every_move_of_an_alias_is_logged():
    found = document("0", "1").with_alias("champion", "v1", "t1", "ada").with_alias("champion", "v2", "t2", "bob")
    found = found.with_alias("champion", "v2", "t3", "eve").with_alias("champion", None, "t4", "ada")

    assert found.aliases == {}
    assert found.log[2:] == (
        Move("t1", "ada", "alias", "champion", None, "v1"),
        Move("t2", "bob", "alias", "champion", "v1", "v2"),
        Move("t4", "ada", "unalias", "champion", "v2", None),
    )


def test_tombstones_and_new_names_are_read_back_as_they_were_written():
    found = document("0", "1").without_version("v1", NOON, "bob", "wrong data")
    moving = replace(found, moving=Moving("acme/nli", None, NOON, "ada"))
    for written in (found, found.without_version("v2", NOON, "bob"), moving, *moving.renamed()):
        assert ReferenceDocument.from_bytes(written.to_bytes()) == written


@pytest.mark.parametrize("kind", [Version, Removed])
def test_an_entry_is_stored_in_types_of_json_alone(kind):
    stored = kind(Digest.of(b"x"), NOON, "ada").to_dict()
    assert type(stored["digest"]) is str
    assert stored["digest"] == Digest.of(b"x")


def test_a_pair_takes_the_place_of_the_pair_with_the_same_key():
    found = document("0").with_tags("v1", ["task=sst2", "best"], [], NOON, "ada")
    found = found.with_tags("v1", ["task=mnli"], ["best"], NOON, "bob")

    assert found.versions["v1"].tags == ("task=mnli",)
    assert found.log[2:] == (
        Move(NOON, "bob", "tag", "task=mnli", None, "v1"),
        Move(NOON, "bob", "untag", "best, task=sst2", None, "v1"),
    )


def test_tags_that_change_nothing_leave_no_trace():
    found = document("0").with_tags("v1", ["best"], [], NOON, "ada")

    assert found.with_tags("v1", ["best"], ["other"], "later", "bob") == found


def changed(**change: object) -> bytes:
    document = {**json.loads(GOLDEN.read_bytes()), **change}
    del document["checksum"]
    return with_checksum(document)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        GOLDEN.read_bytes()[:-1],
        changed(name="../ner"),
        changed(moved_to="ner"),
        changed(versions={}),
        changed(versions=[]),
        changed(versions={"x": {}}),
        changed(aliases={"champion": "v9"}),
        changed(log=[{"time": NOON, "author": "ada", "action": "push", "what": "v1"}]),
        changed(log=[{}]),
        changed(schema_version=0),
        changed(name=3),
        changed(more=1),
        changed(removed={"v1": {"digest": f"sha256:{'1' * 64}", "time": NOON, "author": "ada", "message": ""}}),
        changed(removed={}),
        changed(moved_to="acme/nli"),
        changed(moved_to="../nli", versions={}, aliases={}),
    ],
    ids=range(21),
)
def test_a_damaged_document_is_an_integrity_error_with_the_way_out(data):
    with pytest.raises(IntegrityError, match=r"A reference document is damaged: .*Restore refs/.*push the delta again"):
        ReferenceDocument.from_bytes(data)


def test_a_document_of_a_later_release_is_not_called_damaged():
    data = json.loads(GOLDEN.read_bytes()) | {"schema_version": 2, "new": True}
    with pytest.raises(
        CheckpointError, match=r"^The reference document of a/b has schema_version 2; .*Update deltahub"
    ):
        ReferenceDocument.from_bytes(with_checksum(data), "a/b")


def test_a_manifest_of_another_program_with_options_of_another_form_is_listed_without_them():
    manifest = Manifest({"format": "peft", "options": ["r"]}, (), (), {"total": 0, "delta": 0}, kind=FILES)
    assert summary_of(manifest).keys().isdisjoint({"rank", "alpha", "targets"})
