"""Push, pull, list and resolve, over all sources and one cache."""

from __future__ import annotations

import contextlib
import shutil

import pytest

import deltahub
from deltahub.cache.cache import Cache
from deltahub.checkpoint import checkpoint
from deltahub.errors import (
    CheckpointError,
    IntegrityError,
    NotFoundError,
    ReferenceSyntaxError,
    StorageError,
)
from deltahub.hub.hub import Hub
from deltahub.hub.locating import locate
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Search
from deltahub.stores.base import object_key
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import content_of
from tests.faults import FORBIDDEN, FULL, INTERRUPT

NER = Reference.parse("acme/ner")
FILES = (checkpoint.BACKBONE, checkpoint.CARD, checkpoint.CONFIG, checkpoint.WEIGHTS)


@pytest.fixture
def two(registry, tmp_path) -> Hub:
    """A local registry, and a team's."""
    return Hub({"local": registry, "team": Registry(MemoryStore(), "team")}, Cache(tmp_path / "cache"))


def delta_files(folder) -> dict[str, bytes]:
    return {name: data for name, data in content_of(folder).items() if name in FILES}


def test_a_pulled_delta_is_identical_to_the_pushed_one(hub, checkpoint_folder, tmp_path):
    pushed = hub.push(checkpoint_folder, "acme/ner", tags=["best"], aliases=["champion"])
    pulled = hub.pull(Reference.parse("acme/ner@champion"), to=tmp_path / "copy")

    assert str(pushed.reference) == str(pulled.reference) == "local:acme/ner@v1"
    assert pushed.digest == pulled.digest == checkpoint.describe(checkpoint_folder).digest
    assert (pushed.new, pushed.size, pushed.tags) == (True, pulled.manifest.size, ("best",))
    assert content_of(tmp_path / "copy") == content_of(checkpoint_folder)
    assert delta_files(hub.pull(NER).folder) == content_of(checkpoint_folder)
    assert checkpoint.describe(pulled.folder).digest == pushed.digest


def test_pushing_the_same_content_twice_adds_no_version(hub, new_checkpoint):
    first = hub.push(new_checkpoint(), "acme/ner")
    second = hub.push(new_checkpoint(), "acme/ner", tags=["late"])

    assert (second.reference, second.digest, second.new) == (first.reference, first.digest, False)
    assert second.tags == ("late",)


def test_a_pulled_delta_can_be_pushed_on_and_stays_itself(two, checkpoint_folder):
    first = two.push(checkpoint_folder, "acme/ner")
    second = two.push(two.pull(NER).folder, "acme/ner", to="team")

    assert second.digest == first.digest
    assert str(second.reference) == "team:acme/ner@v1"


def test_a_push_without_a_name_takes_one_from_the_task_and_the_backbone(hub, checkpoint_folder):
    assert hub.push(checkpoint_folder, tags=["task=sst2"]).reference.path == "DeltaHub/sst2-bert-tiny"


def test_tags_saved_with_the_checkpoint_are_pushed_too_but_the_push_has_the_last_word(hub, new_checkpoint):
    folder = new_checkpoint(metadata={"tags": ["best", "task=sst2"]})

    assert hub.push(folder, "acme/ner", tags=["task=mnli"]).tags == ("best", "task=mnli")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("../ner", {}),
        ("acme/n\u0435r", {}),
        ("/etc/passwd", {}),
        ("acme/ner@v3", {}),
        ("acme/ner@champion", {}),
        ("local:acme/ner", {"to": "team"}),
        ("acme/ner", {"tags": ["a b"]}),
        ("acme/ner", {"aliases": ["latest"]}),
    ],
)
def test_a_contradictory_push_is_refused_before_anything_is_written(two, checkpoint_folder, name, options):
    with pytest.raises(ReferenceSyntaxError):
        two.push(checkpoint_folder, name, **options)
    assert not two.registries["local"].store.root.exists()
    assert two.registries["team"].names() == []


def test_a_tag_saved_with_the_checkpoint_is_checked_too(hub, new_checkpoint):
    folder = new_checkpoint(metadata={"tags": ["t\u0430sk=sst2"]})
    with pytest.raises(ReferenceSyntaxError, match=r"U\+0430"):
        hub.push(folder, "acme/ner")
    assert hub.registry(None).names() == []


def test_a_damaged_folder_is_not_pushed(hub, checkpoint_folder):
    (checkpoint_folder / "delta.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError, match="expected 280 bytes, found 0 bytes"):
        hub.push(checkpoint_folder, "acme/ner")
    assert hub.registry(None).names() == []


def test_an_unknown_source_lists_those_that_are_known(two, checkpoint_folder):
    for call in (lambda: two.pull(NER.at(None).parse("moon:acme/ner")), lambda: two.push(checkpoint_folder, to="moon")):
        with pytest.raises(
            NotFoundError, match=r"The source 'moon' was not found\. Looked in: known sources local, team"
        ):
            call()


def test_an_unknown_delta_says_where_it_was_looked_for_and_what_is_near(two, checkpoint_folder):
    two.push(checkpoint_folder, "acme/ner")
    two.push(checkpoint_folder, "acme/nerd", to="team")
    with pytest.raises(NotFoundError) as caught:
        two.pull(Reference.parse("acme/nrr"))
    assert str(caught.value) == (
        f"The delta acme/nrr was not found. Looked in: local ({two.registries['local'].store.root}); team (memory). "
        "The nearest names are: acme/ner, acme/nerd."
    )


@pytest.mark.parametrize("version", ["v9", "champio", "sha256:000000000000"])
def test_an_unknown_version_lists_those_that_are_known(hub, checkpoint_folder, version):
    hub.push(checkpoint_folder, "acme/ner", aliases=["champion"])
    with pytest.raises(
        NotFoundError, match=rf"acme/ner@{version} was not found\. Looked in: versions and aliases v1, champion"
    ):
        hub.pull(NER.at(version))


def test_the_first_source_that_has_a_delta_gives_it_and_is_named(two, new_checkpoint):
    two.push(new_checkpoint(value=0.25), "acme/ner", to="team")
    assert two.pull(NER).reference.source == "team"
    two.push(new_checkpoint(), "acme/ner")

    assert two.pull(NER).reference.source == "local"
    assert two.pull(Reference.parse("team:acme/ner")).reference.source == "team"


def made_anew(hub, folder) -> None:
    """The registry is lost, and another delta is pushed under the same name."""
    shutil.rmtree(hub.registry("local").store.root)
    hub.push(folder, "acme/ner")


@pytest.mark.parametrize("before", ["acme/ner", "acme/ner@v1", "local:acme/ner", "acme/ner@champion"])
@pytest.mark.parametrize("after", ["acme/ner", "local:acme/ner@v1"])
def test_a_version_that_has_another_content_than_before_is_refused(hub, new_checkpoint, before, after):
    first = hub.push(new_checkpoint(), "acme/ner", aliases=["champion"])
    hub.pull(Reference.parse(before))
    made_anew(hub, new_checkpoint(value=0.25))
    for force in (False, True):
        with pytest.raises(IntegrityError, match=rf"history of .*{first.digest}.*A version keeps its digest for ever"):
            hub.pull(Reference.parse(after), force=force)
    with pytest.raises(IntegrityError):
        hub.pin(Reference.parse(after))


def test_naming_the_digest_accepts_a_recreated_history(hub, new_checkpoint):
    hub.push(new_checkpoint(), "acme/ner")
    hub.pull(NER)
    made_anew(hub, second := new_checkpoint(value=0.25))
    digest = checkpoint.describe(second).digest

    assert hub.pull(NER.at(digest)).digest == hub.pull(NER).digest == digest


@pytest.mark.parametrize("name", ["acme/ner", "local:acme/ner@champion"])
def test_a_name_that_goes_back_to_an_older_version_is_a_warning(hub, new_checkpoint, caplog, name):
    hub.push(new_checkpoint(), "acme/ner", aliases=["champion"])
    backup = content_of(hub.registry("local").store.root)
    hub.pull(Reference.parse(name))
    hub.push(new_checkpoint(value=0.25), "acme/ner", aliases=["champion"])
    hub.pull(Reference.parse(name))
    assert not caplog.records
    for path, data in backup.items():
        (hub.registry("local").store.root / path).unlink()
        (hub.registry("local").store.root / path).write_bytes(data)

    assert hub.pull(Reference.parse(name)).reference.version == "v1"
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} is local:acme/ner@v1 now; it was local:acme/ner@v2 when it was last pulled. It went back."
    ]


def test_a_damaged_source_hands_out_nothing(hub, checkpoint_folder, tmp_path):
    hub.push(checkpoint_folder, "acme/ner")
    entry = checkpoint.describe(checkpoint_folder).files[2]
    path = hub.registry(None).store.root / object_key(entry.sha256)
    path.chmod(0o644)
    path.write_bytes(b"broken")
    with pytest.raises(
        IntegrityError, match=r"delta\.safetensors in the registry local .* is damaged.*Push the delta again"
    ):
        hub.pull(NER, to=tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_damaged_cache_is_repaired_from_the_source(hub, checkpoint_folder):
    hub.push(checkpoint_folder, "acme/ner")
    folder = hub.pull(NER).folder
    (folder / "delta.safetensors").write_bytes(b"broken")

    assert delta_files(hub.pull(NER).folder) == content_of(checkpoint_folder)


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_a_copy_that_fails_at_any_step_leaves_the_old_delta_or_the_new_one(hub, new_checkpoint, faults, error):
    new = new_checkpoint(value=0.25)
    hub.push(new, "acme/ner")
    hub.push(new_checkpoint(), "acme/old")
    hub.pull(NER)
    before, after = (checkpoint.describe(folder).digest for folder in (new_checkpoint(), new))
    steps = faults.count(lambda: hub.pull(NER, to=new_checkpoint()))
    for case, step, failure in faults.each(steps, error):
        folder = new_checkpoint()
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            hub.pull(NER, to=folder)
        assert checkpoint.describe(folder).digest in (before, after), case
        assert set(content_of(folder)) == set(FILES), case
        hub.pull(NER, to=folder)
        assert checkpoint.describe(folder).digest == after, case


def test_a_copy_never_overwrites_a_delta_that_is_kept_nowhere_else(hub, new_checkpoint):
    hub.push(new_checkpoint(value=0.25), "acme/ner")
    mine = new_checkpoint(value=0.75)
    before = content_of(mine)
    with pytest.raises(CheckpointError, match=r"holds a delta which no registry and no cache holds\. Push it first"):
        hub.pull(NER, to=mine)
    assert content_of(mine) == before
    hub.push(mine, "acme/mine")
    hub.pull(NER, to=mine)

    (mine / "README.md").write_text("notes")
    with pytest.raises(CheckpointError, match="which no registry"):
        hub.pull(NER, to=mine)
    (mine / "delta.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="changed since it was saved"):
        hub.pull(NER, to=mine)
    hub.pull(NER, to=mine, force=True)
    assert checkpoint.describe(mine).digest == hub.pull(NER).digest


def test_a_copy_replaces_an_older_version_that_the_cache_still_holds(hub, new_checkpoint, tmp_path):
    hub.push(new_checkpoint(value=0.25), "acme/ner")
    hub.pull(NER, to=tmp_path / "out")
    hub.push(new_checkpoint(value=0.5), "acme/ner")
    assert hub.pull(NER, to=tmp_path / "out").reference.version == "v2"


def test_a_search_is_of_one_registry(two, checkpoint_folder):
    two.push(checkpoint_folder, "acme/ner")
    two.push(checkpoint_folder, "acme/nli", to="team")

    for source, expected in ((None, "acme/ner"), ("local", "acme/ner"), ("team", "acme/nli")):
        lines, total = two.search(Search(), source)
        assert ([line.name for line in lines], total) == ([expected], 1)


def test_the_environment_says_where_things_are(monkeypatch, tmp_path):
    monkeypatch.setenv("DELTAHUB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DELTAHUB_CACHE")
    opened = Hub.open()
    assert opened.registry(None).store.root == tmp_path / "home/registry"
    assert opened.cache.root == tmp_path / "home/cache"

    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / "cache"))
    assert Hub.open().cache.root == tmp_path / "cache"
    assert Hub.open(tmp_path / "other").cache.root == tmp_path / "other"
    monkeypatch.delenv("DELTAHUB_HOME")
    assert Hub.open().registry(None).store.root.parts[-2:] == ("deltahub", "registry")


def test_the_same_calls_work_from_the_package(checkpoint_folder, tmp_path):
    pushed = deltahub.push(checkpoint_folder, "acme/ner", tags=["best"])

    assert [line.name for line in deltahub.list_deltas("ner", tags=["best"])] == ["acme/ner"]
    assert deltahub.list_deltas(author="bob") == []
    assert deltahub.pull("acme/ner", to=tmp_path / "copy").digest == pushed.digest


def test_a_place_is_a_folder_or_a_reference(checkpoint_folder, tmp_path):
    deltahub.push(checkpoint_folder, "acme/ner")

    assert locate(checkpoint_folder) == checkpoint_folder
    assert delta_files(locate("acme/ner", tmp_path / "cache")) == content_of(checkpoint_folder)
    for path in (tmp_path / "nothing", "./nothing", "~/nothing", "a/b/c"):
        with pytest.raises(CheckpointError, match=r"There is no folder .*nothing|There is no folder a/b/c"):
            locate(path)
    with pytest.raises(CheckpointError, match="is a file; expected the folder that save_finetuned wrote"):
        locate(checkpoint_folder / "README.md")
    with pytest.raises(NotFoundError):
        locate("acme/nothing")
