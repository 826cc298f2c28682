"""Deltas are renamed while somebody goes through all of them: none is overlooked, and none is there twice."""

from __future__ import annotations

import itertools

import pytest

from deltahub.errors import ConflictError
from deltahub.reference import Reference
from deltahub.registry.edits import set_alias
from deltahub.registry.gc import used
from deltahub.registry.mirror import copy
from deltahub.registry.purge import reuse_name
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.rename import rename
from deltahub.registry.verify import verify
from deltahub.stores.memory import MemoryStore

NER, NLI, QA = Reference.parse("acme/ner"), Reference.parse("acme/nli"), Reference.parse("acme/qa")


class Busy(MemoryStore):
    """A store in which something happens after its names were listed, or before a document is written."""

    def __init__(self):
        super().__init__()
        self.listed = self.written = lambda: None

    def keys(self, prefix):
        found = [*super().keys(prefix)]
        if prefix == REFS:
            step, self.listed = self.listed, lambda: None
            step()
        yield from found

    def swap(self, key, data, expected):
        if b'"moved_to"' in data:
            self.written()
        return super().swap(key, data, expected)


@pytest.fixture
def registry(publish) -> Registry:
    registry = Registry(Busy())
    publish(registry, NER.path)
    return registry


@pytest.fixture
def mirror() -> Registry:
    return Registry(MemoryStore())


def documents(registry):
    return {key: registry.store.read(key) for key, _ in registry.store.keys(REFS)}


def renaming(registry, *names):
    def step():
        for old, new in itertools.pairwise(names):
            rename(registry, old, new)

    return step


@pytest.mark.parametrize("names", [(NER, NLI), (NER, NLI, QA), (NER, NLI, NER)], ids=len)
def test_a_delta_renamed_during_a_collection_is_in_use(registry, names):
    before = used(registry)
    registry.store.listed = renaming(registry, *names)
    assert used(registry) == before


def test_a_delta_renamed_during_verify_is_intact_and_its_names_resolve(registry):
    registry.store.listed = renaming(registry, NER, NLI)
    assert list(verify(registry)) == [("acme/nli@v1", None)]


@pytest.mark.parametrize("names", [(NER, NLI), (NER, NLI, QA), (NER, NLI, NER)], ids=len)
def test_a_delta_renamed_during_a_copy_arrives_once_with_its_names(registry, mirror, names):
    registry.store.listed = renaming(registry, *names)
    list(copy(registry, mirror))
    assert mirror.document("acme/ner").name == registry.document("acme/ner").name
    assert not any(damage for _, damage in verify(mirror))
    list(copy(registry, mirror))
    assert documents(mirror) == documents(registry)


def test_a_copy_while_a_rename_is_halfway_takes_one_delta(registry, mirror):
    registry.store.written = lambda: list(copy(registry, mirror))
    rename(registry, NER, NLI)
    assert mirror.names() == ["acme/ner"]
    registry.store.written = lambda: None
    list(copy(registry, mirror))
    assert documents(mirror) == documents(registry)


@pytest.mark.parametrize("names", [(NER, NLI), (NER, NLI, QA), (NER, NLI, NER)], ids=len)
def test_a_delta_renamed_since_the_last_copy_is_renamed_in_the_mirror(registry, mirror, publish, names):
    list(copy(registry, mirror))
    publish(registry, NER.path, value=1, aliases=["champion"])
    renaming(registry, *names)()
    publish(registry, NER.path, value=2)
    assert [(copied.name, copied.versions) for copied in copy(registry, mirror) if copied.versions] == [
        (names[-1].path, ("v2", "v3"))
    ]
    assert documents(mirror) == documents(registry)
    assert not any(copied.changed for copied in copy(registry, mirror))


@pytest.mark.parametrize("copied_before", [True, False])
def test_a_new_delta_under_an_old_name_stays_separate_from_the_renamed_one(registry, mirror, publish, copied_before):
    list(copy(registry, mirror))
    rename(registry, NER, NLI)
    if copied_before:
        list(copy(registry, mirror))
    reuse_name(registry, NER.path, "2026-01-02T03:04:05Z")
    publish(registry, NER.path, value=1)
    if not copied_before:
        with pytest.raises(ConflictError, match="made anew under an old name"):
            list(copy(registry, mirror, [NER.path]))
    list(copy(registry, mirror))
    assert documents(mirror) == documents(registry)
    assert list(mirror.document(NLI.path).versions) == ["v1"]
    assert not any(copied.changed for copied in copy(registry, mirror))


def test_a_delta_with_a_history_of_its_own_is_renamed_in_the_mirror_and_keeps_it(registry, mirror, publish):
    list(copy(registry, mirror))
    set_alias(mirror, NER.path, "ours", "v1")
    publish(registry, NER.path, value=1)
    rename(registry, NER, NLI)
    list(copy(registry, mirror))
    assert mirror.document(NER.path).name == NLI.path
    assert mirror.document(NLI.path).aliases == {"ours": "v1"}
    assert list(mirror.document(NLI.path).versions) == ["v1", "v2"]


def test_a_delta_that_was_renamed_in_the_mirror_keeps_the_name_it_has_there(registry, mirror, publish):
    list(copy(registry, mirror))
    rename(mirror, NER, QA)
    publish(registry, NER.path, value=1)
    list(copy(registry, mirror))
    assert list(mirror.document(QA.path).versions) == ["v1", "v2"]
    assert mirror.document(NER.path).name == QA.path
