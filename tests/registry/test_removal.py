"""Versions go, aliases go back, deltas get other names; nothing that was acknowledged is lost or given twice."""

from __future__ import annotations

import contextlib

import pytest

from deltahub.errors import ConflictError, InUseError, NotFoundError, ReferenceSyntaxError, RemovedError, StorageError
from deltahub.reference import Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.edits import remove, set_alias, set_tags, undo
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.rename import rename
from deltahub.registry.search.conditions import Search
from deltahub.registry.search.index import Index
from deltahub.registry.verify import verify
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.faults import INTERRUPT
from tests.faults.disk import tree_of, write_tree

pytestmark = pytest.mark.slow  # an error at every step

NER, NLI = Reference.parse("acme/ner"), Reference.parse("acme/nli")


class Rival(MemoryStore):
    """A store in which somebody else is faster once."""

    rival = None

    def swap(self, key, data, expected):
        if self.rival:
            rival, self.rival = self.rival, None
            rival()
        return super().swap(key, data, expected)


@pytest.fixture
def contested(publish):
    """A registry with two versions and an alias in which `store.rival` runs before the next change."""
    registry = Registry(Rival())
    publish(registry, aliases=["champion"])
    publish(registry, value=0.25)
    return registry


# ----- removing -----


def test_a_removed_version_says_when_and_by_whom_it_was_removed(anywhere, publish, monkeypatch):
    publish(anywhere)
    publish(anywhere, value=0.25)
    digest = anywhere.document("acme/ner").versions["v1"].digest
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2026-01-02T03:04:05Z")
    document, version = remove(anywhere, "acme/ner", "v1", message="wrong data")

    assert (version, list(document.versions)) == ("v1", ["v2"])
    told = r"was removed at 2026-01-02T03:04:05Z by ada: wrong data\. Still there: v2\."
    for asked in ("v1", digest, digest[:20]):
        with pytest.raises(RemovedError, match=rf"acme/ner@v1 .*{told}|acme/ner@v1 {told}"):
            anywhere.resolve(NER.at(asked))
    with pytest.raises(RemovedError):
        remove(anywhere, "acme/ner", "v1")
    assert anywhere.document("acme/ner").log[-1].action == "remove"


def test_the_number_of_a_removed_version_is_never_given_again(anywhere, publish):
    publish(anywhere)
    publish(anywhere, value=0.25)
    remove(anywhere, "acme/ner", "v2")

    assert publish(anywhere, value=0.25) == "v3"
    assert list(anywhere.document("acme/ner").versions) == ["v1", "v3"]


def test_a_version_that_an_alias_points_to_is_not_removed(anywhere, publish):
    publish(anywhere, aliases=["champion"])
    for asked in ("v1", "champion", "latest", None):
        with pytest.raises(InUseError, match=r"the alias champion points to it\. .* --remove"):
            remove(anywhere, "acme/ner", asked)
    assert list(anywhere.document("acme/ner").versions) == ["v1"]


def test_a_version_that_is_needed_is_not_removed(anywhere, publish):
    publish(anywhere)
    digest = anywhere.document("acme/ner").versions["v1"].digest
    with pytest.raises(InUseError, match="the lock file pins it"):
        remove(anywhere, "acme/ner", "v1", needed={digest})


def test_a_delta_without_versions_is_not_listed_and_can_be_pushed_again(anywhere, publish, tmp_path):
    publish(anywhere)
    remove(anywhere, "acme/ner", "v1")
    index = Index(tmp_path / "index.sqlite3", anywhere)

    assert index.search(Search()) == ([], 0)
    with pytest.raises(RemovedError, match="No version is left"):
        anywhere.resolve(NER)
    assert list(verify(anywhere)) == []
    assert publish(anywhere) == "v2"
    assert index.search(Search())[1] == 1


def test_a_version_that_gets_an_alias_meanwhile_is_not_removed(contested):
    contested.store.rival = lambda: set_alias(contested, "acme/ner", "prod", "v2")
    with pytest.raises(InUseError, match="the alias prod points to it"):
        remove(contested, "acme/ner", "v2")


def test_removing_the_newest_never_removes_one_that_was_pushed_meanwhile(contested, publish):
    contested.store.rival = lambda: publish(contested, value=0.125)
    assert remove(contested, "acme/ner", None)[1] == "v2"
    assert list(contested.document("acme/ner").versions) == ["v1", "v3"]


# ----- aliases and tags -----


def test_an_alias_moves_only_from_where_it_is_expected(anywhere, publish):
    publish(anywhere)
    publish(anywhere, value=0.25)
    set_alias(anywhere, "acme/ner", "prod", "v1", expect=None)
    with pytest.raises(ConflictError, match="The alias acme/ner@prod: expected no entry, found v1"):
        set_alias(anywhere, "acme/ner", "prod", "v2", expect=None)
    with pytest.raises(ConflictError, match="expected v2, found v1"):
        set_alias(anywhere, "acme/ner", "prod", None, expect="v2")
    assert set_alias(anywhere, "acme/ner", "prod", "v2", expect="v1").aliases == {"prod": "v2"}


def test_a_push_adds_no_version_if_an_alias_is_not_where_it_is_expected(anywhere, publish):
    publish(anywhere, aliases=["prod"], expect={"prod": None})
    with pytest.raises(ConflictError, match="The alias acme/ner@prod: expected no entry, found v1"):
        publish(anywhere, value=0.25, aliases=["prod"], expect={"prod": None})
    assert list(anywhere.document("acme/ner").versions) == ["v1"]
    assert publish(anywhere, value=0.25, aliases=["prod"], expect={"prod": "v1"}) == "v2"


def test_a_push_that_loses_the_race_for_an_expected_alias_adds_no_version(contested, publish):
    contested.store.rival = lambda: set_alias(contested, "acme/ner", "champion", "v2")
    with pytest.raises(ConflictError, match="expected v1, found v2"):
        publish(contested, value=0.125, aliases=["champion"], expect={"champion": "v1"})
    assert list(contested.document("acme/ner").versions) == ["v1", "v2"]


def test_an_alias_that_moves_meanwhile_is_a_conflict_that_names_both_sides(contested):
    contested.store.rival = lambda: set_alias(contested, "acme/ner", "champion", "v2")
    with pytest.raises(ConflictError, match="acme/ner@champion: expected v1, found v2"):
        set_alias(contested, "acme/ner", "champion", None)
    assert contested.document("acme/ner").aliases == {"champion": "v2"}


def test_other_changes_meanwhile_are_kept(contested, publish):
    contested.store.rival = lambda: publish(contested, value=0.125)
    assert set_alias(contested, "acme/ner", "prod", "latest").aliases == {"champion": "v1", "prod": "v2"}
    contested.store.rival = lambda: set_tags(contested, "acme/ner", "v2", ["theirs"], [])
    assert set_tags(contested, "acme/ner", "v2", ["mine"], []).tags == ("mine", "theirs")


def test_undoing_goes_back_move_by_move_and_is_in_the_log(anywhere, publish):
    for value in (1, 2, 3):
        publish(anywhere, value=value)
    for version in ("v1", "v2", None, "v3"):
        set_alias(anywhere, "acme/ner", "prod", version)
    found = [undo(anywhere, "acme/ner")[0].aliases.get("prod") for _ in range(2)]
    set_alias(anywhere, "acme/ner", "prod", "v1")
    found += [undo(anywhere, "acme/ner")[0].aliases.get("prod") for _ in range(3)]

    assert found == [None, "v2", "v2", "v1", None]
    with pytest.raises(NotFoundError, match="A move of an alias of acme/ner was not found"):
        undo(anywhere, "acme/ner")
    assert [move.action for move in anywhere.document("acme/ner").log].count("undo") == 5


def test_an_alias_is_not_put_back_to_a_version_that_is_gone(anywhere, publish):
    for value in (1, 2):
        publish(anywhere, value=value, aliases=["prod"])
    remove(anywhere, "acme/ner", "v1")
    with pytest.raises(RemovedError):
        undo(anywhere, "acme/ner")
    assert anywhere.document("acme/ner").aliases == {"prod": "v2"}


def test_undo_never_reverts_a_concurrent_move(contested):
    contested.store.rival = lambda: set_alias(contested, "acme/ner", "champion", "v2")
    with pytest.raises(ConflictError, match="expected champion: nothing -> v1, found champion: v1 -> v2"):
        undo(contested, "acme/ner")


# ----- names -----


def test_an_old_name_leads_to_the_new_one_and_says_so_once(anywhere, publish, caplog, tmp_path):
    publish(anywhere, aliases=["champion"])
    rename(anywhere, NER, NLI)
    for _ in range(2):
        assert anywhere.resolve(NER.at("champion")).document.name == "acme/nli"

    assert [record.message for record in caplog.records] == ["acme/ner was renamed: it is acme/nli now."]
    assert publish(anywhere, "acme/ner", value=0.25) == "v2"
    assert list(anywhere.document("acme/nli").versions) == ["v1", "v2"]
    assert [line.name for line in Index(tmp_path / "index.sqlite3", anywhere).search(Search())[0]] == ["acme/nli"]
    assert anywhere.document("acme/nli").log[2].action == "rename"


def test_a_delta_can_be_renamed_again_and_back(anywhere, publish):
    publish(anywhere)
    rename(anywhere, NER, NLI)
    rename(anywhere, NLI, Reference.parse("acme/qa"))
    assert anywhere.document("acme/ner").name == "acme/qa"
    rename(anywhere, NER, NLI)

    assert {anywhere.document(f"acme/{name}").name for name in ("ner", "nli", "qa")} == {"acme/nli"}
    assert rename(anywhere, NLI, NLI) == anywhere.document("acme/nli")


def test_a_name_in_use_cannot_be_taken(anywhere, publish):
    publish(anywhere)
    publish(anywhere, "acme/nli")
    rename(anywhere, NER, Reference.parse("acme/qa"))
    for taken, why in ((NLI, "acme/nli is another delta"), (NER, "acme/ner is the old name of acme/qa")):
        with pytest.raises(InUseError, match=why) as caught:
            rename(anywhere, NLI if taken is NER else Reference.parse("acme/qa"), taken)
        assert "Choose a name that is free" in str(caught.value)
    with pytest.raises(ReferenceSyntaxError, match="differ only in upper and lower case"):
        rename(anywhere, NLI, Reference.parse("acme/NLI"))
    with pytest.raises(NotFoundError):
        rename(anywhere, Reference.parse("acme/nothing"), Reference.parse("acme/else"))


def test_a_push_during_a_rename_is_renamed_too(contested, publish):
    swap = contested.store.swap

    def push_before_the_old_name_goes(key, data, expected):
        if key.endswith("ner.json"):
            contested.store.swap = swap
            publish(contested, value=0.125)
        return swap(key, data, expected)

    contested.store.swap = push_before_the_old_name_goes
    rename(contested, NER, NLI)
    assert list(contested.document("acme/ner").versions) == ["v1", "v2", "v3"]
    assert contested.document("acme/ner").name == "acme/nli"


def test_names_that_lead_to_each_other_are_damage(anywhere):
    for name, other in (("ner", "nli"), ("nli", "ner")):
        document = ReferenceDocument(f"acme/{name}", moved_to=f"acme/{other}")
        anywhere.store.swap(f"refs/acme/{name}.json", document.to_bytes(), None)
    with pytest.raises(Exception, match="names that lead to each other"):
        anywhere.document("acme/ner")


# ----- faults -----


def state(registry) -> dict[str, bytes]:
    return {key: registry.store.read(key) for key, _ in registry.store.keys(REFS)}


ACTIONS = {
    "remove": lambda registry: remove(registry, "acme/ner", "v2"),
    "undo": lambda registry: undo(registry, "acme/ner"),
    "rename": lambda registry: rename(registry, NER, NLI),
    "alias": lambda registry: set_alias(registry, "acme/ner", "prod", "v2"),
    "tag": lambda registry: set_tags(registry, "acme/ner", "v2", ["late"], []),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_change_that_is_interrupted_at_any_step_is_done_or_not_and_can_be_repeated(
    tmp_path, publish, faults, monkeypatch, action
):
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2026-01-02T03:04:05Z")
    act = ACTIONS[action]

    registry = Registry(LocalStore(tmp_path / "first"))
    publish(registry, aliases=["champion"])
    publish(registry, value=0.25)
    tree = tree_of(registry.store.root)

    def prepare(case):
        write_tree(tree, tmp_path / case)
        return Registry(LocalStore(tmp_path / case))

    registry = prepare("count")
    before = registry.document("acme/ner")
    steps = faults.count(lambda: act(registry))
    after = registry.document("acme/ner")
    for case, step, failure in faults.each(steps, INTERRUPT):  # for errors, see tests/faults/test_steps.py
        registry = prepare(case)
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            act(registry)
        assert registry.document("acme/ner") in (before, after), case
        assert {damage for _, damage in verify(registry)} == {None}, case
        if registry.document("acme/ner") == before:
            act(registry)
        assert registry.document("acme/ner") == after, case
