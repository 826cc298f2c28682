"""The registries that a user has set up: one file, written whole, without secrets."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from deltahub.errors import ConfigError, NotFoundError, ReferenceSyntaxError, StorageError
from deltahub.files.documents import problem
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.settings.environment import config_home
from deltahub.settings.source_entry import LOCAL, SourceEntry
from deltahub.settings.user import FILE, Settings, change
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.local import LocalStore
from tests.faults import FORBIDDEN, FULL, INTERRUPT

TEAM = SourceEntry("team", "/mnt/team")
BUCKET = SourceEntry("bucket", "s3://deltas/x", "http://127.0.0.1:1", "eu-west-1", "work")


@pytest.fixture
def settings() -> Path:
    """The file that holds them."""
    return config_home() / FILE


def test_without_a_file_there_is_only_the_local_one(settings):
    assert Settings.read() == Settings({}, LOCAL)
    assert not settings.parent.exists()
    assert list(Hub.open().registries) == ["local"]
    assert Settings.read().names == ("local", "hf")


def test_added_sources_are_read_back_in_order(settings):
    for entry in (TEAM, BUCKET, SourceEntry("another", "/mnt/another")):
        change(lambda settings, entry=entry: settings.add(entry))
    change(lambda settings: settings.make_default("bucket"))

    read = Settings.read()
    assert list(read.added.values()) == [TEAM, BUCKET, SourceEntry("another", "/mnt/another")]
    assert read.default == "bucket"
    assert problem(json.loads(settings.read_bytes()), "registries.v1") is None


def test_the_hub_searches_them_after_the_local_one_and_asks_none_of_them_to_open(settings):
    change(lambda settings: settings.add(TEAM).add(BUCKET).make_default("team"))
    hub = Hub.open()
    assert list(hub.registries) == ["local", "team", "bucket"]
    assert hub.registry(None) is hub.registries["team"]
    assert isinstance(hub.registries["team"].store, LocalStore)
    store = hub.registries["bucket"].store
    assert isinstance(store, BucketStore)
    assert store.url == "s3://deltas/x at http://127.0.0.1:1"
    assert (store.bucket.region, store.bucket.profile) == ("eu-west-1", "work")


def test_no_other_source_replaces_an_unreachable_one(tmp_path, checkpoint_folder, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    change(lambda settings: settings.add(SourceEntry("bucket", "s3://deltas/x", "http://127.0.0.1:1")))
    change(lambda settings: settings.add(SourceEntry("team", str(tmp_path / "team"))))
    hub = Hub.open()
    hub.push(checkpoint_folder, "acme/ner", to="team")

    with pytest.raises(StorageError, match=r"s3://deltas/x at http://127\.0\.0\.1:1 .*cannot be reached"):
        hub.pull(Reference.parse("acme/ner"))
    assert str(hub.pull(Reference.parse("team:acme/ner")).reference) == "team:acme/ner@v1"


def test_a_folder_is_kept_absolute_and_a_home_is_filled_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert SourceEntry.checked("team", "deltas/../team").url == str(tmp_path / "team")
    assert SourceEntry.checked("team", "~/team").url == str(tmp_path / "user/team")


@pytest.mark.parametrize(
    ("arguments", "where", "words"),
    [
        (("local", "/x"), {}, "'local' is a reserved source name"),
        (("hf", "/x"), {}, "'hf' is a reserved source name"),
        (("team", "ftp://x"), {}, "is not the location of a registry: expected a folder, s3://bucket/prefix"),
        (("team", "s3://"), {}, "is not a location in a bucket"),
        (("team", "s3://KEY:secret@deltas"), {}, "must hold no user or secret"),
        (("team", "/x"), {"options": ["skip_signature=true"]}, "option is for registries in buckets"),
        (("team", "gs://deltas"), {"region": "eu-west-1"}, "region is for buckets in S3"),
        (("team", "s3://deltas"), {"options": ["token=1"]}, "'token' is not an option of a bucket in S3"),
        (("team", "/x"), {"region": "eu-west-1"}, "region is for registries in buckets"),
        (("team", "s3://deltas"), {"endpoint": "here"}, "is not the address of a server"),
    ],
)
def test_an_invalid_registry_address_is_refused(arguments, where, words):
    with pytest.raises(ConfigError, match=words):
        SourceEntry.checked(*arguments, **where)
    assert Settings.read() == Settings()


@pytest.mark.parametrize("name", ["Team", "t", "a_b", "", "team:x"])
def test_an_invalid_source_is_refused(name):
    with pytest.raises(ReferenceSyntaxError, match="cannot be a source: expected 2 to 32 lower-case letters"):
        SourceEntry.checked(name, "/x")


def test_a_name_is_never_given_to_another_place():
    change(lambda settings: settings.add(TEAM))
    assert change(lambda settings: settings.add(TEAM)).added == {"team": TEAM}
    with pytest.raises(ConfigError, match=r"'team' is /mnt/team already.*deltahub source remove team"):
        change(lambda settings: settings.add(SourceEntry("team", "/mnt/other")))
    assert Settings.read().added == {"team": TEAM}


def test_with_the_default_gone_the_local_one_is_it_again():
    change(lambda settings: settings.add(TEAM).add(BUCKET).make_default("team"))
    assert change(lambda settings: settings.remove("bucket")).default == "team"
    assert change(lambda settings: settings.remove("team")) == Settings({}, LOCAL)
    assert change(lambda settings: settings.make_default(LOCAL)).default == LOCAL
    with pytest.raises(ConfigError, match="The local registry cannot be removed"):
        change(lambda settings: settings.remove(LOCAL))


@pytest.mark.parametrize(
    "how", [lambda settings: settings.remove("tean"), lambda settings: settings.make_default("tean")]
)
def test_an_unknown_name_names_the_nearest(how):
    change(lambda settings: settings.add(TEAM))
    with pytest.raises(NotFoundError) as caught:
        change(how)
    assert caught.value.nearest == ("team",)
    with pytest.raises(NotFoundError) as caught:
        Hub.open().registry("tean")
    assert caught.value.nearest == ("team",)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "Expecting"),
        ("[]", ""),
        ('{"format_version": 2, "default": "local", "registries": []}', "it has format 2"),
        ('{"format_version": 1, "default": "gone", "registries": []}', "its default names 'gone', which is not among"),
        ('{"format_version": 1, "default": "local", "registries": [{"name": "a"}]}', "url"),
        ('{"format_version": 1, "default": "local", "registries": [{"name": "aa", "url": 5}]}', "is not text"),
        ('{"format_version": 1, "default": "local", "registries": [{"name": "A", "url": "/x"}]}', "cannot be a source"),
        ('{"format_version": 1, "default": "local", "registries": [{"name": "aa", "url": "/x", "key": "k"}]}', "key"),
    ],
)
def test_a_damaged_file_is_one_sentence_and_is_not_written_over(settings, content, why):
    settings.parent.mkdir(parents=True)
    settings.write_text(content, "utf-8")
    for use in (Hub.open, lambda: change(lambda settings: settings.add(TEAM))):
        with pytest.raises(ConfigError, match=f"registries.json is damaged: .*{why}"):
            use()
    assert settings.read_text("utf-8") == content


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_a_change_that_fails_at_any_step_leaves_the_old_settings_or_the_new_ones(settings, faults, error):
    change(lambda settings: settings.add(TEAM))
    old = settings.read_bytes()
    steps = faults.count(lambda: change(lambda settings: settings.add(BUCKET)))
    new = settings.read_bytes()
    for case, step, failure in faults.each(steps, error):
        settings.write_bytes(old)
        try:
            with faults.at(step, failure):
                change(lambda settings: settings.add(BUCKET))
        except (StorageError, KeyboardInterrupt):
            pass
        assert settings.read_bytes() in (old, new), case
        assert {path.name for path in settings.parent.iterdir()} <= {FILE, f"{FILE}.lock"}, case


def test_of_many_changes_at_once_none_is_lost():
    start = threading.Barrier(4)

    def add(number: int) -> None:
        start.wait()
        change(lambda settings: settings.add(SourceEntry(f"team-{number}", f"/mnt/{number}")))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(Settings.read().added) == {f"team-{number}" for number in range(4)}


def test_settings_that_may_not_be_read_are_one_sentence(shared_folder, as_nobody, monkeypatch):
    monkeypatch.setenv("DELTAHUB_HOME", str(shared_folder / "home"))
    change(lambda settings: settings.add(TEAM))
    (config_home() / FILE).chmod(0o600)
    as_nobody()
    if os.access(config_home() / FILE, os.R_OK, effective_ids=True):
        pytest.skip("permissions do not bind this user")
    with pytest.raises(StorageError, match=r"Reading the settings failed .*Permission denied"):
        Settings.read()
