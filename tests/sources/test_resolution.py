"""Where a name is looked for: the order, what is off or bound, and that nobody takes a private name's place."""

from __future__ import annotations

import logging

import pytest

from deltahub.cache.cache import Cache
from deltahub.checkpoint import checkpoint
from deltahub.errors import (
    ConfigError,
    DeltaHubError,
    NotFoundError,
    NoVersionError,
    RemovedError,
    StorageError,
    UnreachableError,
)
from deltahub.hub.hub import Hub
from deltahub.hub.lockfile import VARIABLE, Lock
from deltahub.link import Link
from deltahub.reference import Reference
from deltahub.registry.edits import remove
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.registry.search.conditions import Search
from deltahub.sources.catalog import Rules
from deltahub.stores.local import LocalStore
from tests.checkpoints import content_of
from tests.sources.remote import Remote
from tests.sources.web_server import serving

NER = Reference.parse("acme/ner")


class World:
    """A local registry, a team's, and a public hub in which anybody can take a name."""

    def __init__(self, tmp_path, new_checkpoint) -> None:
        self.local = Registry(LocalStore(tmp_path / "registry"))
        self.team, self.public = Remote("team", tmp_path), Remote("public", tmp_path)
        self.sources = {"local": self.local, "team": self.team, "public": self.public}
        self.cache, self._new = Cache(tmp_path / "cache"), new_checkpoint

    def hub(self, *, local_files_only=False, **rules) -> Hub:
        rules = {"default": "local", "public": ("public",), **rules}
        return Hub(self.sources, self.cache, Rules(**rules), local_files_only=local_files_only)

    def push(self, to, value=0.5, name="acme/ner") -> str:
        return self.hub().push(self._new(value=value), name, to=to).digest


@pytest.fixture
def world(tmp_path, new_checkpoint) -> World:
    return World(tmp_path, new_checkpoint)


# ----- the order -----


def test_the_first_source_that_has_a_name_gives_it_and_is_named(world):
    digests = {source: world.push(source, value) for value, source in enumerate(("public", "team", "local"))}
    for source in ("local", "team", "public"):
        pulled = world.hub().pull(Reference.parse(f"{source}:acme/ner"))
        assert (str(pulled.reference), pulled.digest) == (f"{source}:acme/ner@v1", digests[source])
    assert str(world.hub().pull(NER).reference) == "local:acme/ner@v1"


def test_a_name_that_is_nowhere_lists_all_places_in_order(world):
    with pytest.raises(NotFoundError) as caught:
        world.hub().pull(NER)
    assert [place.split()[0] for place in caught.value.looked_in] == ["local", "team", "public"]


def test_a_source_that_has_the_delta_but_not_the_version_ends_the_search(world):
    world.push("team")
    world.push("public")
    with pytest.raises(NoVersionError):
        world.hub().pull(NER.at("v9"))
    world.push("team", 0.75)
    remove(world.team.registry, "acme/ner", "v1")
    with pytest.raises(RemovedError):
        world.hub().pull(NER.at("v1"))
    assert world.public.request_count == 0


def test_a_name_that_was_renamed_is_followed_within_its_source(world):
    world.push("team")
    world.push("public")
    rename(world.team.registry, NER, Reference.parse("acme/tagger"))
    assert str(world.hub().pull(NER).reference) == "team:acme/tagger@v1"


# ----- nobody takes a private name's place -----


def test_a_source_that_does_not_answer_ends_the_search_with_the_way_out(world):
    world.push("public")
    world.team.down = True
    with pytest.raises(UnreachableError) as caught:
        world.hub().pull(NER)
    told = str(caught.value)
    assert "team (memory) failed" in told
    assert "acme/ner may be there, so it is looked for nowhere else" in told
    assert "deltahub source disable team" in told
    assert world.public.request_count == 0

    assert world.hub().pull(Reference.parse("public:acme/ner")).reference.source == "public"
    assert world.hub(disabled=("team",)).pull(NER).reference.source == "public"


def test_a_typing_error_is_helped_with_though_a_later_source_does_not_answer(world):
    world.push("local", name="acme/sentiment")
    world.team.down = True
    with pytest.raises(
        UnreachableError, match=r"team .* The nearest names elsewhere are: acme/sentiment\. Name the source"
    ):
        world.hub().pull(Reference.parse("acme/sentimnt"))


def test_a_source_that_refuses_to_answer_ends_the_search_too(world, monkeypatch):
    world.push("public")

    def refuse(path):
        raise StorageError("You may not read there.")

    monkeypatch.setattr(world.team.registry, "document", refuse)
    with pytest.raises(StorageError, match="You may not read there"):
        world.hub().pull(NER)
    assert world.public.request_count == 0


def test_a_namespace_that_belongs_to_a_source_is_looked_for_there_only(world):
    world.push("public")
    world.push("public", name="other/ner")
    hub = world.hub(bound={"acme": ("team",)})
    for text in ("acme/ner", "Acme/ner", "ACME/ner"):
        with pytest.raises(NotFoundError) as caught:
            hub.pull(Reference.parse(text))
        assert caught.value.looked_in == ("team (memory)",)
    assert hub.pull(Reference.parse("other/ner")).reference.source == "public"
    assert hub.pull(Reference.parse("public:acme/ner")).reference.source == "public"
    with pytest.raises(
        ConfigError, match=r"Deltas in acme are looked up in team only, which is off.*source enable team"
    ):
        world.hub(bound={"acme": ("team",)}, disabled=("team",)).pull(NER)


@pytest.mark.parametrize("gone", ["removed there", "turned off", "taken out of the settings"])
def test_a_public_name_never_takes_the_place_of_one_that_came_from_elsewhere(world, gone, new_checkpoint):
    private, public = world.push("team", 0.5), world.push("public", 0.75)
    assert world.hub().pull(NER).digest == private
    off = {"disabled": ("team",)} if gone == "turned off" else {}
    if gone == "removed there":
        world.team.registry.store.delete("refs/acme/ner.json")
    elif gone == "taken out of the settings":
        del world.sources["team"]
    with pytest.raises(ConfigError) as caught:
        world.hub(**off).pull(NER)
    told = str(caught.value)
    assert "acme/ner came from team (memory) when it was last pulled by this name, and comes from public" in told
    assert "If it is what you mean, name it: public:acme/ner" in told

    assert world.hub(**off).pull(Reference.parse("public:acme/ner")).digest == public


def test_the_same_content_from_elsewhere_is_the_same(world):
    digest = world.push("team")
    world.push("public")
    world.hub().pull(NER)
    assert world.hub(disabled=("team",)).pull(NER).digest == digest


def test_a_private_name_from_another_private_source_is_reported(world, caplog):
    world.push("team", 0.5)
    world.hub().pull(NER)
    world.push("local", 0.75)
    with caplog.at_level(logging.WARNING, "deltahub"):
        assert world.hub().pull(NER).reference.source == "local"
    assert "acme/ner came from team (memory) when it was last pulled by this name, and comes from local" in caplog.text
    caplog.clear()
    world.hub().pull(NER)
    assert caplog.text == ""


def test_a_pull_by_full_name_does_not_define_the_short_name(world):
    world.push("team", 0.5)
    public = world.push("public", 0.75)
    world.hub().pull(Reference.parse("team:acme/ner"))
    assert world.hub(disabled=("team",)).pull(NER).digest == public


@pytest.mark.parametrize("mistyped", ["acme/nerr", "Acme/ner", "amce/ner", "acme/something-else"])
@pytest.mark.parametrize("holder", ["local", "team"])
def test_a_name_in_a_private_namespace_is_not_asked_for_in_public(world, holder, mistyped):
    world.push(holder)
    world.push("public", name="acme/public")
    for call in (world.hub().pull, world.hub().document, world.hub().pin):
        with pytest.raises(NotFoundError) as caught:
            call(Reference.parse(mistyped))
        assert f"public (memory) was not asked, for acme is a namespace of {holder}" in str(caught.value)
        assert f"to ask it, name it: public:{mistyped}" in str(caught.value)
        assert caught.value.nearest[0] == "acme/ner"
    assert world.public.request_count == 0


def test_a_private_namespace_that_is_known_in_public_is_asked_for_there(world):
    digest = world.push("public", 0.25, "acme/public")
    world.push("team")
    assert world.hub(bound={"acme": ("team", "public")}).pull(Reference.parse("acme/public")).digest == digest
    world.push("public", 0.75, "acme/second")
    assert (
        world.hub().pull(Reference.parse("acme/second")).reference.source == "public"
    )  # something was pulled from there


def test_the_public_source_is_asked_for_a_private_namespace_when_it_is_named(world):
    world.push("team")
    digest = world.push("public", 0.25, "acme/public")
    assert world.hub().pull(Reference.parse("public:acme/public")).digest == digest


def test_a_namespace_is_private_once_something_was_pulled_from_it(world):
    world.push("team")
    world.hub().pull(Reference.parse("team:acme/ner"))
    with pytest.raises(NotFoundError, match=r"Acme is a namespace of team, from which it was pulled before"):
        world.hub(disabled=("team",)).pull(Reference.parse("Acme/other"))
    assert world.public.request_count == 0


@pytest.mark.parametrize("mistyped", ["amce/other", "acm/other", "acmee/other", "axme/other"])
def test_so_is_one_of_nearly_its_name(world, mistyped):
    world.push("team")
    world.hub().pull(Reference.parse("team:acme/ner"))
    with pytest.raises(NotFoundError, match=r"acme is a namespace of team, from which it was pulled before"):
        world.hub(disabled=("team",)).pull(Reference.parse(mistyped))
    assert world.public.request_count == 0


def test_a_namespace_that_is_bound_to_a_private_source_is_private_and_so_is_nearly_its_name(world):
    with pytest.raises(NotFoundError, match=r"secret is a namespace of team"):
        world.hub(bound={"secret": ("team",)}).pull(Reference.parse("secert/ner"))
    assert world.public.request_count == 0


@pytest.mark.parametrize("name", ["ner", "lba/ner", "la/ner", "lap/ner"])
def test_the_namespace_of_the_user_is_private_and_so_is_nearly_its_name(world, monkeypatch, name):
    monkeypatch.setenv("DELTAHUB_NAMESPACE", "lab")
    with pytest.raises(NotFoundError, match=r"lab is your own namespace"):
        world.hub().pull(Reference.parse(name))
    assert world.public.request_count == 0


def test_a_namespace_like_no_private_one_is_asked_for_in_public(world):
    world.push("team")
    digest = world.push("public", 0.25, "bigscience/ner")
    assert world.hub().pull(Reference.parse("bigscience/ner")).digest == digest


def test_a_lock_file_overrides_the_sources(world, tmp_path, monkeypatch):
    digest = world.push("team", 0.5)
    path = tmp_path / "deltahub.lock"
    Lock(path, {"acme/ner": world.hub().pin(NER)}).write()
    monkeypatch.setenv(VARIABLE, str(path))
    world.push("local", 0.75)
    world.push("public", 0.25)

    pulled = world.hub().pull(NER)
    assert (pulled.reference.source, pulled.digest) == ("team", digest)


def test_with_a_lock_file_a_link_must_be_pinned(world, tmp_path, monkeypatch, new_checkpoint):
    path = tmp_path / "deltahub.lock"
    Lock(path, {}).write()
    monkeypatch.setenv(VARIABLE, str(path))
    folder = new_checkpoint()
    digest = checkpoint.describe(folder).digest.removeprefix("sha256:")
    folder.rename(tmp_path / "ner")
    with serving(tmp_path) as site:
        with pytest.raises(ConfigError, match=r"can change, and the lock file .* is in force.*Write #sha256="):
            world.hub().pull(Link.parse(f"{site.url}/ner"))
        assert site.requests == []
        assert world.hub().pull(Link.parse(f"{site.url}/ner#sha256={digest}")).digest == f"sha256:{digest}"


# ----- off, and without a name -----


def test_a_source_that_is_off_is_neither_searched_nor_named(world):
    world.push("team")
    hub = world.hub(disabled=("team",))
    with pytest.raises(NotFoundError) as caught:
        hub.pull(NER)
    assert "team" not in str(caught.value)
    for call in (lambda: hub.pull(Reference.parse("team:acme/ner")), lambda: hub.search(Search(), "team")):
        with pytest.raises(ConfigError, match=r"The source 'team' is off\. Turn it on: deltahub source enable team"):
            call()
    with pytest.raises(ConfigError, match="is off"):
        hub.push(world._new(), "acme/x", to="team")
    assert "team" not in hub.registries


def test_a_registry_needs_no_name(world, tmp_path, new_checkpoint):
    place = tmp_path / "elsewhere"
    pushed = world.hub().push(new_checkpoint(), "acme/ner", to=str(place))
    assert str(pushed.reference) == f"{place}:acme/ner@v1"
    pulled = world.hub().pull(Reference.parse(f"{place}:acme/ner"), to=tmp_path / "copy")
    assert (pulled.digest, content_of(tmp_path / "copy")) == (pushed.digest, content_of(new_checkpoint()))
    assert [line.name for line in world.hub().search(Search(), str(place))[0]] == ["acme/ner"]
    assert {path.name for path in tmp_path.iterdir() if path.suffix == ".sqlite3"} == set()
    assert world.hub().pin(Reference.parse(f"{place}:acme/ner")).source == str(place)
    with pytest.raises(NotFoundError):
        world.hub().pull(NER)


def test_a_place_that_has_a_name_goes_by_it(world, tmp_path, new_checkpoint):
    hub = world.hub(places={str(tmp_path / "registry"): "local"})
    assert str(hub.push(new_checkpoint(), "acme/ner", to=f"{tmp_path}/registry/").reference) == "local:acme/ner@v1"


def test_changing_a_delta_needs_a_registry(world, monkeypatch):
    class NoRegistry:
        name, place, remote = "hub", "hub (https://hub.example)", False

        def document(self, path):
            return world.team.registry.document(path)

    world.push("team")
    hub = Hub({"hub": NoRegistry()}, world.cache)
    with pytest.raises(
        ConfigError, match=r"hub \(https://hub\.example\) is not a registry, and only registries support this"
    ):
        hub.held(NER)


# ----- several at once -----


def test_several_are_pulled_at_once_and_one_that_fails_holds_up_no_other(world):
    wanted = [Reference.parse(f"acme/d{number}") for number in range(12)]
    digests = [world.push("team", number, f"acme/d{number}") for number in range(12)]
    wanted.insert(5, NER)
    results = world.hub().pull_all(wanted)

    failed = results.pop(5)
    assert isinstance(failed, NotFoundError)
    assert [one.digest for one in results] == digests
    assert all(checkpoint.describe(one.folder).digest == one.digest for one in results)


def test_the_files_of_a_delta_are_fetched_at_once(world, monkeypatch):
    import threading

    world.push("team")
    meeting = threading.Barrier(4, timeout=30)  # of the four files of a delta
    fetch = world.team.registry.fetch

    def wait_for_the_others(*arguments):
        meeting.wait()
        fetch(*arguments)

    monkeypatch.setattr(world.team.registry, "fetch", wait_for_the_others)
    assert checkpoint.is_checkpoint(world.hub().pull(NER).folder)


def test_a_file_that_fails_leaves_nothing_half_done(world, monkeypatch):
    world.push("team")
    fetch = world.team.registry.fetch

    def fail(entry, *arguments):
        if entry.path == checkpoint.WEIGHTS:
            raise UnreachableError("The server is gone.")
        fetch(entry, *arguments)

    monkeypatch.setattr(world.team.registry, "fetch", fail)
    (result,) = world.hub().pull_all([NER])
    assert isinstance(result, DeltaHubError)
    assert not list(world.cache.root.glob("deltas/*/*"))
    assert not list(world.cache.root.glob("names/*/*"))
