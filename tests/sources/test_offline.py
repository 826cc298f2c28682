"""Without the network: what was pulled loads by the name it was pulled by, and the rest says what to pull beforehand."""

from __future__ import annotations

import logging

import pytest

from deltahub.cache.remembered import NAMES, CachedNames, Meaning
from deltahub.checkpoint import checkpoint
from deltahub.errors import NotCachedError, NotFoundError, UnreachableError
from deltahub.link import Link
from deltahub.reference import Digest, Reference
from deltahub.registry.edits import set_alias
from deltahub.registry.search.conditions import Search
from deltahub.settings import environment
from tests.checkpoints import content_of
from tests.sources.test_resolution import NER, World

SILENCE = ["DELTAHUB_OFFLINE", "HF_HUB_OFFLINE", "local_files_only", "no answer"]


@pytest.fixture
def world(tmp_path, new_checkpoint) -> World:
    return World(tmp_path, new_checkpoint)


@pytest.fixture(params=SILENCE)
def silent(request, world, monkeypatch):
    """Gives a hub without a network, for one of the reasons that there may be."""

    def hub():
        if request.param == "no answer":
            world.team.down = world.public.down = True
        elif request.param == "DELTAHUB_OFFLINE":
            monkeypatch.setenv("DELTAHUB_OFFLINE", "1")
        elif request.param == "HF_HUB_OFFLINE":
            monkeypatch.delenv("DELTAHUB_OFFLINE")
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        world.team.request_count = world.public.request_count = 0
        return world.hub(local_files_only=request.param == "local_files_only")

    yield hub
    if request.param != "no answer":
        assert (world.team.request_count, world.public.request_count) == (0, 0)


@pytest.mark.parametrize(
    "asked",
    ["acme/ner", "acme/ner@v1", "acme/ner@champion", "team:acme/ner", "team:acme/ner@v1", "team:acme/ner@champion"],
)
def test_a_pulled_delta_loads_by_the_name_and_version_it_was_pulled_by(world, silent, asked):
    digest = world.push("team")
    set_alias(world.team.registry, "acme/ner", "champion", "v1")
    world.hub().pull(Reference.parse(asked))

    pulled = silent().pull(Reference.parse(asked))
    assert (pulled.digest, str(pulled.reference)) == (digest, "team:acme/ner@v1")
    assert checkpoint.describe(pulled.folder).digest == digest


def test_an_exact_version_loads_by_any_name_it_was_pulled_by(world, silent):
    digest = world.push("team")
    world.hub().pull(NER)
    assert silent().pull(Reference.parse("team:acme/ner@v1")).digest == digest


def test_a_name_that_moved_meanwhile_is_what_it_was_and_says_so(world, silent, caplog):
    before = world.push("team", 0.5)
    world.hub().pull(NER)
    world.push("team", 0.75)
    with caplog.at_level(logging.INFO, "deltahub"):
        assert silent().pull(NER).digest == before
    assert "acme/ner is what it was when last pulled: team:acme/ner@v1" in caplog.text


def test_folders_and_registries_in_folders_need_no_network(world, silent, tmp_path):
    digest = world.push("local")
    world.push("team", 0.75)
    hub = silent()
    assert hub.pull(NER, to=tmp_path / "copy").digest == digest
    assert hub.push(tmp_path / "copy", "acme/again").reference.source == "local"
    assert len(hub.search(Search())[0]) == 2


def test_a_name_is_not_answered_from_elsewhere_only_because_its_source_is_silent(world, silent):
    world.push("team", 0.5)
    world.push("public", 0.75)
    world.hub().pull(Reference.parse("public:acme/ner"))
    with pytest.raises((NotCachedError, UnreachableError)) as caught:
        silent().pull(NER)
    if isinstance(caught.value, NotCachedError):
        assert "public:acme/ner" in caught.value.nearest


@pytest.mark.parametrize("reason", SILENCE[:3])
def test_the_error_for_other_names_says_what_to_pull_beforehand(world, monkeypatch, reason):
    world.push("team")
    world.push("team", name="acme/nli")
    world.hub().pull(Reference.parse("acme/nli"))
    if reason != "local_files_only":
        monkeypatch.delenv("DELTAHUB_OFFLINE")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv(reason, "1")
    with pytest.raises(NotFoundError) as caught:
        world.hub(local_files_only=reason == "local_files_only").pull(NER.at("champion"))
    assert str(caught.value) == (
        f"The delta acme/ner@champion was not found. Looked in: local ({world.local.store.root}); "
        "what was pulled from team (memory). The nearest names are: acme/nli, team:acme/nli@v1. "
        f"{reason} is set, so no other source was asked. "
        "Pull it beforehand where there is a network: deltahub pull acme/ner@champion"
    )


def test_force_download_does_not_accept_the_cached_copy(world, silent):
    world.push("team")
    world.hub().pull(NER)
    with pytest.raises((NotCachedError, UnreachableError)):
        silent().pull(NER, force=True)


def test_a_delta_that_was_pruned_or_damaged_does_not_load(world, silent):
    world.push("team")
    folder = world.hub().pull(NER).folder
    (folder / checkpoint.WEIGHTS).write_bytes(b"broken")
    with pytest.raises((NotCachedError, UnreachableError), match="damaged in the cache"):
        silent().pull(NER)


def test_a_source_moved_to_another_address_does_not_vouch_for_earlier_pulls(world, silent, monkeypatch):
    world.push("team")
    world.hub().pull(NER)
    world.team.registry.name = "elsewhere"
    with pytest.raises((NotCachedError, UnreachableError)):
        silent().pull(Reference.parse("team:acme/ner"))


def test_a_link_loads_by_the_address_it_was_pulled_by(world, tmp_path, new_checkpoint, monkeypatch):
    from tests.sources.web_server import serving

    new_checkpoint().rename(tmp_path / "ner")
    with serving(tmp_path) as site:
        link = Link.parse(f"{site.url}/ner?key=hidden")
        digest = world.hub().pull(link).digest
    monkeypatch.setenv("DELTAHUB_OFFLINE", "1")
    assert world.hub().pull(link).digest == digest
    with pytest.raises(NotCachedError, match="deltahub pull http://127"):
        world.hub().pull(Link.parse(f"{site.url}/other"))
    assert all("hidden" not in path.read_text() for path in (world.cache.root / NAMES).rglob("*.json"))


@pytest.mark.parametrize(
    ("own", "theirs", "hub", "network"),
    [
        (None, None, "yes", "yes"),
        ("1", None, "no", "no"),
        ("true", None, "no", "no"),
        (None, "1", "no", "no"),
        ("0", "1", "no", "yes"),
        ("0", "0", "yes", "yes"),
        ("1", "0", "no", "no"),
    ],
)
def test_the_environment_says_whether_there_is_a_network(monkeypatch, own, theirs, hub, network):
    for variable, value in (("DELTAHUB_OFFLINE", own), ("HF_HUB_OFFLINE", theirs)):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
    assert (environment.forbidden(hub=True) is None) == (hub == "yes")
    assert (environment.forbidden() is None) == (network == "yes")


def test_pushing_over_a_network_that_may_not_be_used_is_one_sentence(world, monkeypatch, new_checkpoint):
    monkeypatch.setenv("DELTAHUB_OFFLINE", "1")
    for call in (lambda: world.push("team"), lambda: world.hub().search(Search(), "team")):
        with pytest.raises(UnreachableError, match=r"team \(memory\) needs the network, and DELTAHUB_OFFLINE is set"):
            call()


# ----- what is remembered -----


def test_names_are_remembered_only_as_far_as_they_can_be_read(world):
    names = CachedNames(world.cache)
    world.push("team")
    world.hub().pull(NER)
    for file in (world.cache.root / NAMES).rglob("*.json"):
        file.write_bytes(b"{")
    assert names.recall(NER) is None
    assert names.near("acme/ner") == ()
    assert world.hub().pull(NER).reference.source == "team"
    assert names.recall(NER) is not None


def test_names_that_differ_only_in_upper_and_lower_case_are_kept_apart(world):
    names = CachedNames(world.cache)
    seen = Meaning(Reference.parse("team:acme/ner@v1"), Digest("sha256:" + "0" * 64), "team (memory)")
    names.remember(NER, seen)
    other = Reference.parse("acme/ner@Champion")
    names.remember(other.at("champion"), seen)
    assert names.recall(NER) == seen
    assert names.recall(other) is None


def test_a_warm_pull_writes_nothing(world):
    world.push("team")
    world.hub().pull(NER)
    before = {path: path.stat().st_mtime_ns for path in (world.cache.root / NAMES).rglob("*")}
    world.hub().pull(NER)
    assert {path: path.stat().st_mtime_ns for path in (world.cache.root / NAMES).rglob("*")} == before


def test_a_cache_that_cannot_be_written_remembers_nothing_and_serves(world, monkeypatch):
    world.push("team")
    (world.cache.root / NAMES).parent.mkdir(parents=True, exist_ok=True)
    (world.cache.root / NAMES).write_text("in the way")
    assert content_of(world.hub().pull(NER).folder)
