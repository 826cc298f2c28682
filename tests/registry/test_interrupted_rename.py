"""A rename that is not done: the delta is the one under its old name, whichever name it is asked for by."""

from __future__ import annotations

import pytest

from deltahub.errors import ConflictError, InUseError
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.stores.memory import MemoryStore

NER, NLI = Reference.parse("acme/ner"), Reference.parse("acme/nli")


class Halting(MemoryStore):
    """A store in which a rename stops before its second step, or does something else first."""

    def __init__(self):
        super().__init__()
        self.before_second = None

    def swap(self, key, data, expected):
        if self.before_second and b'"moved_to"' in data:
            step, self.before_second = self.before_second, None
            step()
        return super().swap(key, data, expected)


@pytest.fixture
def registry() -> Registry:
    return Registry(Halting())


def halt():
    raise ZeroDivisionError


def versions(registry, name):
    return list(registry.document(name).versions)


@pytest.fixture
def halfway(registry, publish) -> Registry:
    """A delta whose rename from ner to nli was killed."""
    publish(registry, "acme/ner")
    registry.store.before_second = halt
    with pytest.raises(ZeroDivisionError):
        rename(registry, NER, NLI)
    return registry


def test_pushes_to_either_name_are_under_both_and_survive_the_rename(halfway, publish):
    publish(halfway, "acme/nli", value=1)
    publish(halfway, "acme/ner", value=2)
    assert versions(halfway, "acme/ner") == versions(halfway, "acme/nli") == ["v1", "v2", "v3"]

    assert rename(halfway, NER, NLI).name == "acme/nli"
    assert versions(halfway, "acme/ner") == versions(halfway, "acme/nli") == ["v1", "v2", "v3"]


def test_a_push_to_the_new_name_during_a_rename_is_kept(registry, publish):
    publish(registry, "acme/ner")
    registry.store.before_second = lambda: publish(registry, "acme/nli", value=1)
    rename(registry, NER, NLI)
    assert versions(registry, "acme/ner") == versions(registry, "acme/nli") == ["v1", "v2"]
    assert registry.stored("acme/ner").moved_to == "acme/nli"


def test_a_rename_that_was_overtaken_by_another_one_overwrites_nothing(registry, publish, monkeypatch):
    publish(registry, "acme/ner")
    read = registry.read

    def slow(path):
        """Between its first look and its first step, somebody pushes and somebody else renames."""
        found = read(path)
        monkeypatch.setattr(registry, "read", read)
        publish(registry, "acme/ner", value=1)
        rename(registry, NER, NLI)
        return found

    monkeypatch.setattr(registry, "read", slow)
    rename(registry, NER, NLI)
    assert versions(registry, "acme/ner") == versions(registry, "acme/nli") == ["v1", "v2"]


def test_a_rename_back_that_is_not_done_leaves_the_delta_under_the_name_it_has(registry, publish):
    publish(registry, "acme/ner")
    rename(registry, NER, NLI)
    registry.store.before_second = halt
    with pytest.raises(ZeroDivisionError):
        rename(registry, NLI, NER)
    assert registry.document("acme/ner").name == registry.document("acme/nli").name == "acme/nli"


def test_the_next_change_completes_an_unfinished_rename(registry, publish):
    publish(registry, "acme/ner")
    rename(registry, NER, NLI)
    registry.store.before_second = halt
    with pytest.raises(ZeroDivisionError):
        rename(registry, NLI, NER)
    publish(registry, "acme/nli", value=1)
    assert registry.document("acme/nli").name == "acme/ner"
    assert versions(registry, "acme/nli") == ["v1", "v2"]


def test_another_delta_is_never_taken_for_a_copy(registry, publish):
    publish(registry, "acme/ner")
    publish(registry, "acme/nli", value=1)
    with pytest.raises(InUseError, match="acme/nli is another delta"):
        rename(registry, NER, NLI)


def test_a_rename_that_loses_every_race_says_so_and_the_delta_keeps_its_name(registry, publish, monkeypatch):
    publish(registry, "acme/ner")
    swap, pushed = registry.store.swap, []

    def busy(key, data, expected):
        if b'"moving"' in data:
            monkeypatch.setattr(registry.store, "swap", swap)
            pushed.append(publish(registry, "acme/ner", value=10 + len(pushed)))
            monkeypatch.setattr(registry.store, "swap", busy)
        return swap(key, data, expected)

    monkeypatch.setattr(registry.store, "swap", busy)
    with pytest.raises(ConflictError):
        rename(registry, NER, NLI)
    monkeypatch.setattr(registry.store, "swap", swap)
    assert versions(registry, "acme/ner") == ["v1", *pushed]
    assert registry.stored("acme/nli") is None
