"""A registry keeps what was pushed, whoever pushes at the same time and whatever breaks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading

import pytest

from deltahub.checkpoint import checkpoint
from deltahub.errors import IntegrityError, NotFoundError, ReferenceSyntaxError, StorageError
from deltahub.reference import Reference
from deltahub.registry.edits import set_alias, set_tags
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.verify import verify
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.faults import FULL, INTERRUPT
from tests.faults.disk import tree_of, write_tree

NER = Reference.parse("acme/ner")


def push(registry, folder, reference=NER, **options):
    published = publish(registry, Publication(reference, checkpoint.describe(folder), folder, **options))
    return published.version, published.new


def state(registry) -> dict[str, bytes]:
    return {key: registry.store.read(key) for key, _ in registry.store.keys(REFS)}


def damages(registry, *asked) -> list[tuple[str, str | None]]:
    return list(verify(registry, *asked))


def test_a_pushed_delta_is_listed_with_all_its_metadata(registry, new_checkpoint):
    folder = new_checkpoint(metadata={"test_result": {"f1": 0.5}})
    assert push(registry, folder, tags=["b", "a", "a"], aliases=["champion"], message="first") == ("v1", True)

    found = registry.resolve(NER.at("champion"))
    assert found.version == "v1"
    assert found.manifest == checkpoint.describe(folder)
    assert (found.entry.author, found.entry.message, found.entry.tags) == ("ada", "first", ("a", "b"))
    assert found.entry.summary == {
        "delta_type": "lora",
        "backbone_class": "BertModel",
        "backbone_checkpoint_name": "bert-tiny",
        "backbone_hash": "d7474661c20756431f06fe37973b5126",
        "size": found.manifest.size,
        "parameters": 10,
        "rank": 1,
        "targets": ["query"],
        "metrics": {"f1": 0.5},
        "backbone_record": next(file.sha256 for file in found.manifest.files if file.path == "backbone.json"),
    }


def test_the_same_content_from_another_folder_at_another_time_is_no_new_version(registry, new_checkpoint, monkeypatch):
    push(registry, new_checkpoint())
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2099-01-01T00:00:00Z")

    before = state(registry)
    assert push(registry, new_checkpoint()) == ("v1", False)
    assert state(registry) == before
    assert push(registry, new_checkpoint(value=0.25)) == ("v2", True)


def test_equal_content_has_one_digest_in_every_registry(registry, new_checkpoint):
    other = Registry(MemoryStore(), "other")
    for place in (registry, other):
        push(place, new_checkpoint())

    assert registry.document("acme/ner").versions["v1"].digest == other.document("acme/ner").versions["v1"].digest


def test_an_unknown_name_says_where_it_looked_and_what_is_near(registry, checkpoint_folder):
    push(registry, checkpoint_folder)
    with pytest.raises(NotFoundError) as caught:
        registry.resolve(Reference.parse("acme/nerr"))
    assert str(caught.value) == (
        f"acme/nerr was not found. Looked in: local ({registry.store.root}). The nearest names are: acme/ner."
    )


@pytest.mark.parametrize("large", [1000, 0], ids=["listed", "in a table"])
def test_a_name_in_other_letters_of_the_same_kind_is_refused(registry, checkpoint_folder, monkeypatch, large):
    monkeypatch.setattr("deltahub.registry.name_table.LARGE", large)
    push(registry, checkpoint_folder)
    for twin, known in (("acme/NER", "acme/ner"), ("Acme/ner", "acme/ner"), ("ACME/other", "acme")):
        with pytest.raises(ReferenceSyntaxError, match=f"'{known}', which exists, differ only in upper and lower case"):
            push(registry, checkpoint_folder, Reference.parse(twin))
    assert registry.names() == ["acme/ner"]


@pytest.mark.parametrize(
    "options", [{"tags": ["\u0430"]}, {"tags": ["../x"]}, {"aliases": ["v1"]}, {"aliases": ["a//b"]}]
)
def test_a_bad_tag_or_alias_is_refused_before_anything_is_written(registry, checkpoint_folder, options):
    with pytest.raises(ReferenceSyntaxError):
        push(registry, checkpoint_folder, **options)
    assert not registry.store.root.exists()


def test_a_file_that_changed_since_it_was_described_is_refused(registry, checkpoint_folder):
    manifest = checkpoint.describe(checkpoint_folder)
    (checkpoint_folder / "README.md").write_bytes(b"# Another\n")
    with pytest.raises(IntegrityError, match="It changed while it was published; repeat"):
        publish(registry, Publication(NER, manifest, checkpoint_folder))
    assert registry.names() == []


def test_aliases_and_tags_move_and_are_logged(registry, new_checkpoint):
    push(registry, new_checkpoint(), aliases=["champion"])
    push(registry, new_checkpoint(value=0.25), aliases=["champion"], tags=["task=sst2"])
    set_tags(registry, "acme/ner", "champion", ["task=mnli"], [])
    set_alias(registry, "acme/ner", "old", "v1")
    found = set_alias(registry, "acme/ner", "champion", None)

    assert found == registry.document("acme/ner")
    assert found.aliases == {"old": "v1"}
    assert found.versions["v2"].tags == ("task=mnli",)
    assert [move.action for move in found.log] == ["push", "alias", "push", "alias", "tag", "untag", "alias", "unalias"]


def test_moving_a_missing_delta_names_the_existing_ones(registry, checkpoint_folder):
    push(registry, checkpoint_folder, aliases=["champion"])
    with pytest.raises(NotFoundError, match=r"acme/ner@champ was not found\. Looked in: aliases champion"):
        set_alias(registry, "acme/ner", "champ", None)
    with pytest.raises(NotFoundError, match="versions and aliases v1, champion, latest"):
        set_alias(registry, "acme/ner", "prod", "v7")
    with pytest.raises(NotFoundError, match="The nearest names are: acme/ner"):
        set_tags(registry, "acme/nerr", None, ["x"], [])
    for alias in ("latest", "v3", "sha256"):
        with pytest.raises(ReferenceSyntaxError):
            set_alias(registry, "acme/ner", alias, "v1")


class Rival(MemoryStore):
    """A store in which somebody else is faster a few times."""

    def __init__(self, times):
        super().__init__()
        self.times, self.before = times, lambda: None

    def swap(self, key, data, expected):
        if self.times:
            self.times -= 1
            self.before()
        return super().swap(key, data, expected)


def test_a_lost_race_is_retried_on_the_winners_document(new_checkpoint):
    store = Rival(1)
    registry, mine, theirs = Registry(store), new_checkpoint(), new_checkpoint(value=0.25)
    store.before = lambda: push(Registry(store), theirs)

    assert push(registry, mine) == ("v2", True)
    digests = [entry.digest for entry in registry.document("acme/ner").versions.values()]
    assert digests == [checkpoint.describe(theirs).digest, checkpoint.describe(mine).digest]


def test_a_race_lost_to_the_same_content_is_no_new_version(new_checkpoint):
    store = Rival(1)
    store.before = lambda: push(Registry(store), new_checkpoint())

    assert push(Registry(store), new_checkpoint()) == ("v1", False)


@pytest.mark.parametrize("make", [MemoryStore, None], ids=["memory", "local"])
def test_threads_that_push_at_the_same_time_lose_nothing(tmp_path, new_checkpoint, make):
    store = make() if make else LocalStore(tmp_path / "registry")
    folders = [new_checkpoint(value=number) for number in range(4)]
    expected = {checkpoint.describe(folder).digest for folder in folders}
    start, errors = threading.Barrier(4), []

    def work(number):
        start.wait()
        try:
            push(Registry(store), folders[number], tags=[f"t{number}"], aliases=[f"a{number}", "champion"])
        except BaseException as error:  # noqa: BLE001  (a thread's error would be lost)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    document = Registry(store).document("acme/ner")
    assert {entry.digest for entry in document.versions.values()} == expected
    assert sorted(tag for entry in document.versions.values() for tag in entry.tags) == ["t0", "t1", "t2", "t3"]
    assert sorted(document.aliases) == ["a0", "a1", "a2", "a3", "champion"]


WORKER = """
import sys
from pathlib import Path
from deltahub.checkpoint import checkpoint
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.stores.local import LocalStore
registry = Registry(LocalStore(Path(sys.argv[1])))
print("ready", flush=True)
sys.stdin.readline()
for folder in map(Path, sys.argv[2:]):
    publish(registry, Publication(Reference.parse("acme/ner"), checkpoint.describe(folder), folder))
"""


def test_processes_that_push_at_the_same_time_lose_nothing(registry, new_checkpoint):
    folders = [new_checkpoint(value=number) for number in range(6)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(registry.store.root), *map(str, share)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in (folders[:3], folders[3:])
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate()
    assert [worker.returncode for worker in workers] == [0, 0]
    found = {entry.digest for entry in registry.document("acme/ner").versions.values()}
    assert found == {checkpoint.describe(folder).digest for folder in folders}


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, INTERRUPT], ids=["full", "interrupted"])
def test_a_push_that_fails_at_any_step_leaves_the_old_state_or_the_new_one(tmp_path, new_checkpoint, faults, error):
    first, second = new_checkpoint(), new_checkpoint(value=0.25)

    registry = Registry(LocalStore(tmp_path / "first"))
    push(registry, first)
    tree = tree_of(registry.store.root)

    def prepare(case):
        write_tree(tree, tmp_path / case)
        registry = Registry(LocalStore(tmp_path / case))
        return registry, state(registry)

    registry, _ = prepare("count")
    steps = faults.count(lambda: push(registry, second, aliases=["champion"]))
    for case, step, failure in faults.each(steps, error):
        registry, before = prepare(case)
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            push(registry, second, aliases=["champion"])
        if state(registry) != before:
            assert registry.resolve(NER.at("champion")).version == "v2", case
        assert {damage for _, damage in damages(registry)} == {None}, case
        assert list((registry.store.root / "staging").iterdir()) == [], case
        assert push(registry, second, aliases=["champion"])[0] == "v2"
        assert damages(registry) == [("acme/ner@v1", None), ("acme/ner@v2", None)]
