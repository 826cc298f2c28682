"""Many checkpoints are published at once as they are one by one; what goes wrong with one is said of that one."""

from __future__ import annotations

import contextlib

import pytest

from deltahub.checkpoint import checkpoint
from deltahub.errors import ConflictError, DeltaHubError, IntegrityError, ReferenceSyntaxError, StorageError
from deltahub.files import durable
from deltahub.reference import Reference
from deltahub.registry.gc import used
from deltahub.registry.publish import Publication, Published, publish, publish_many
from deltahub.registry.registry import Registry
from deltahub.registry.verify import verify
from deltahub.stores.base import object_key
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.faults import FULL, INTERRUPT
from tests.faults.disk import Seen, write_tree

pytestmark = pytest.mark.slow  # an error at every step


@pytest.fixture(autouse=True)
def still(monkeypatch) -> None:
    """It is always the same time; few files count as many; a dead writer need not be waited for."""
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2026-01-02T03:04:05Z")
    monkeypatch.setattr("deltahub.stores.local_files.SILENT", 0.0)
    monkeypatch.setattr(durable, "MANY", 4)


@pytest.fixture
def publication(new_checkpoint):
    """Makes publications of small deltas, told apart by a number."""

    def made(name, value=0.5, **options) -> Publication:
        folder = new_checkpoint(value=value)
        return Publication(Reference.parse(name), checkpoint.describe(folder), folder, **options)

    return made


def content(registry) -> dict[str, bytes]:
    """All documents and objects."""
    return {key: registry.store.read(key) for prefix in ("refs/", "objects/") for key, _ in registry.store.keys(prefix)}


def versions(results) -> list[object]:
    return [(done.document.name, done.version, done.new) if isinstance(done, Published) else done for done in results]


def test_many_at_once_leave_what_one_by_one_leaves(new_registry, publication):
    publications = [
        publication("acme/a", 1, tags=["task=sst2", "best"], aliases=["champion"], message="one"),
        publication("acme/b", 1),
        publication("zoo/a", 2),
    ]
    together = new_registry()
    assert versions(publish_many(together, publications)) == [
        ("acme/a", "v1", True),
        ("acme/b", "v1", True),
        ("zoo/a", "v1", True),
    ]
    one_by_one = Registry(MemoryStore())
    for it in publications:
        options = {"tags": it.tags, "aliases": it.aliases, "message": it.message}
        publish(one_by_one, Publication(it.reference, it.manifest, it.folder, **options))
    assert content(together) == content(one_by_one)
    assert {damage for _, damage in verify(together)} == {None}


def test_the_same_content_again_is_no_new_version(anywhere, publication):
    first = [publication("acme/a", 1), publication("acme/b", 2)]
    publish_many(anywhere, first)
    before = content(anywhere)
    again = publish_many(anywhere, [publication("acme/a", 1), publication("acme/b", 3)])
    assert versions(again) == [("acme/a", "v1", False), ("acme/b", "v2", True)]
    assert content(anywhere)["refs/acme/a.json"] == before["refs/acme/a.json"]


def test_several_of_one_delta_become_its_versions_in_their_order(anywhere, publication):
    done = publish_many(anywhere, [publication("acme/a", number, aliases=["champion"]) for number in (3, 1, 2, 3)])
    assert versions(done) == [
        ("acme/a", "v1", True),
        ("acme/a", "v2", True),
        ("acme/a", "v3", True),
        ("acme/a", "v1", False),
    ]
    assert anywhere.document("acme/a").aliases == {"champion": "v1"}


def test_nothing_is_published_by_nothing(anywhere):
    assert publish_many(anywhere, []) == []


def broken(publication, kind) -> Publication:
    made = publication("acme/bad", 7)
    path = made.folder / "delta.safetensors"
    if kind == "gone":
        path.unlink()
    elif kind == "shorter":
        path.write_bytes(b"x")
    elif kind == "changed":
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif kind == "tag":
        made = publication("acme/bad", 7, tags=["../x"])
    elif kind == "alias":
        made = publication("acme/bad", 7, aliases=["v1"])
    elif kind == "expect":
        made = publication("acme/bad", 7, aliases=["champion"], expect={"champion": "v1"})
    elif kind == "twin":
        made = publication("acme/A", 7)
    elif kind == "twin namespace":
        made = publication("ACME/bad", 7)
    return made


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("gone", StorageError, "delta.safetensors cannot be read"),
        ("shorter", IntegrityError, "delta.safetensors"),
        ("changed", IntegrityError, "delta.safetensors"),
        ("tag", ReferenceSyntaxError, "x"),
        ("alias", ReferenceSyntaxError, "v1"),
        ("expect", ConflictError, "acme/bad@champion"),
        ("twin", ReferenceSyntaxError, "'acme/A' and 'acme/a'"),
        ("twin namespace", ReferenceSyntaxError, "'ACME' and 'acme'"),
    ],
)
def test_one_that_cannot_be_published_keeps_none_of_the_others_from_it(anywhere, publication, kind, error, said):
    publications = [publication("acme/a", 1), broken(publication, kind), publication("acme/b", 2)]
    first, bad, last = publish_many(anywhere, publications)

    assert isinstance(bad, error)
    assert said in str(bad)
    assert versions([first, last]) == [("acme/a", "v1", True), ("acme/b", "v1", True)]
    assert anywhere.names() == ["acme/a", "acme/b"]
    assert list(verify(anywhere)) == [("acme/a@v1", None), ("acme/b@v1", None)]


def test_of_several_of_one_delta_the_one_that_is_refused_is_left_out(anywhere, publication):
    done = publish_many(
        anywhere,
        [
            publication("acme/a", 1, aliases=["champion"]),
            publication("acme/a", 2, aliases=["champion"], expect={"champion": "v9"}),
            publication("acme/a", 3, aliases=["champion"], expect={"champion": "v1"}),
        ],
    )
    assert [isinstance(it, ConflictError) for it in done] == [False, True, False]
    assert versions([done[0], done[2]]) == [("acme/a", "v1", True), ("acme/a", "v2", True)]
    assert anywhere.document("acme/a").aliases == {"champion": "v2"}


class Rival(MemoryStore):
    """A store in which somebody else is faster once."""

    before = None

    def swap_all(self, swaps):
        if self.before:
            before, self.before = self.before, None
            before()
        return super().swap_all(swaps)


def test_a_lost_race_is_retried_on_the_winners_document(publication):
    store = Rival()
    theirs = publication("acme/a", 9)
    store.before = lambda: publish(Registry(store), Publication(theirs.reference, theirs.manifest, theirs.folder))
    done = publish_many(Registry(store), [publication("acme/a", 1), publication("acme/b", 2)])
    assert versions(done) == [("acme/a", "v2", True), ("acme/b", "v1", True)]
    assert Registry(store).document("acme/a").versions["v1"].digest == theirs.manifest.digest


def test_a_delta_that_was_renamed_takes_what_is_pushed_under_both_names(anywhere, publication):
    from deltahub.registry.rename import rename

    publish_many(anywhere, [publication("acme/a", 1)])
    rename(anywhere, Reference.parse("acme/a"), Reference.parse("acme/b"))
    done = publish_many(anywhere, [publication("acme/a", 2), publication("acme/b", 3)])
    assert {(it.document.name, it.new) for it in done} == {("acme/b", True)}
    assert len(anywhere.document("acme/b").versions) == 3


def test_many_that_are_killed_at_any_step_are_published_or_not_and_can_be_repeated(tmp_path, publication, faults):
    publications = [publication("acme/a", 2), publication("acme/b", 3)]
    old = publication("acme/a", 1)

    def prepare(case):
        registry = Registry(LocalStore(tmp_path / case))
        publish(registry, Publication(old.reference, old.manifest, old.folder))
        return registry

    registry = prepare("whole")
    left = faults.killed(registry.store.root, lambda: publish_many(registry, publications))
    after = content(registry)
    for step, tree in left:
        write_tree(tree, tmp_path / f"{step}")
        registry = Registry(LocalStore(tmp_path / f"{step}"))
        assert {damage for _, damage in verify(registry)} == {None}, step
        assert len(registry.document("acme/a").versions) in (1, 2), step
        assert registry.names() in (["acme/a"], ["acme/a", "acme/b"]), step
        assert not [it for it in publish_many(registry, publications) if isinstance(it, DeltaHubError)], step
        assert content(registry) == after, step
        assert {key.replace("/", "")[-64:] for key in after if key.startswith("objects")} == used(registry), step


@pytest.mark.parametrize("error", [FULL, INTERRUPT], ids=["full", "interrupted"])
def test_many_that_fail_at_any_step_say_what_became_of_them_and_can_be_repeated(tmp_path, publication, faults, error):
    publications = [publication("acme/a", 2), publication("acme/b", 3)]
    registry = Registry(LocalStore(tmp_path / "count"))
    steps = faults.count(lambda: publish_many(registry, publications))
    after, seen = content(registry), Seen()
    for case, step, failure in faults.each(steps, error):
        registry = Registry(LocalStore(tmp_path / case))
        done: list[object] = []
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            done = publish_many(registry, publications)
        for it, became in zip(publications, done, strict=False):
            if isinstance(became, Published):
                assert registry.document(it.reference.path).versions["v1"].digest == it.manifest.digest, case
        if not seen.is_new(registry.store.root):
            continue
        assert {damage for _, damage in verify(registry)} <= {None}, case
        publish_many(registry, publications)
        assert content(registry) == after, case


class Sweeping(MemoryStore):
    """A store in which a collection deletes an object just before the documents are swapped."""

    victim = ""

    def swap_all(self, swaps):
        from deltahub.registry.gc_state import State, read_state, write_state

        state, etag = read_state(self)
        write_state(self, State(state.generation + 1), etag)
        self.delete(object_key(self.victim))
        return super().swap_all(swaps)


def test_a_concurrent_collection_deletes_nothing_published(publication):
    store = Sweeping()
    publications = [publication("acme/a", 1), publication("acme/b", 2)]
    store.victim = publications[1].manifest.files[0].sha256
    registry = Registry(store)
    publish_many(registry, publications)
    assert {damage for _, damage in verify(registry)} == {None}


def test_a_new_name_is_compared_with_those_of_its_namespace_alone(registry, publish, monkeypatch):
    publish(registry, "acme/a")
    publish(registry, "zoo/a")
    listed, children = [], registry.store.children
    monkeypatch.setattr(registry.store, "children", lambda folder: listed.append(folder) or children(folder))
    publish(registry, "acme/b")
    publish(registry, "acme/b", 2)
    assert listed == ["refs/", "refs/acme/"]


def test_a_folder_without_deltas_is_no_namespace_that_a_name_must_follow(registry, publish):
    (registry.store.root / "refs" / "ACME").mkdir(parents=True)
    publish(registry, "acme/a")
    assert registry.names() == ["acme/a"]
