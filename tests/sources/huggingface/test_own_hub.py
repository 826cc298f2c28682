"""Between a hub of our own and the Hugging Face protocol a delta stays what it is, in both directions."""

from __future__ import annotations

import huggingface_hub
import pytest

from deltahub.checkpoint import describe
from deltahub.errors import NotFoundError, StorageError
from deltahub.hub.copying import copy_from_hub
from deltahub.registry.amending import Amendment
from deltahub.registry.commit_message import commit_id
from deltahub.registry.index import Index
from deltahub.registry.query import Query
from deltahub.registry.registry import Registry
from deltahub.registry.removal import remove
from deltahub.registry.verify import verify
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import content_of
from tests.sources.huggingface.test_failures import answer, flipped
from tests.sources.huggingface.test_foreign import upload
from tests.sources.huggingface.test_push_and_pull import api, delta_files, ref

pytestmark = pytest.mark.parametrize("server", ["own"], indirect=True)


def test_what_was_pushed_over_the_protocol_is_in_the_registry_under_its_digest(hub, server, repo, checkpoint_folder):
    pushed = hub.push(checkpoint_folder, f"hf:{repo}", tags=["task=sst2"], aliases=["champion"], message="two epochs")
    document = server.registry.document(repo)

    assert [it.digest for it in document.versions.values()] == [pushed.digest]
    assert pushed.digest == describe(checkpoint_folder).digest
    assert document.versions["v1"].tags == ("task=sst2",)
    assert document.versions["v1"].message == "two epochs"
    assert document.aliases == {"champion": "v1"}


def test_tags_of_a_later_push_are_added_to_the_version(hub, server, repo, checkpoint_folder):
    first = hub.push(checkpoint_folder, f"hf:{repo}", tags=["task=sst2"])
    second = hub.push(checkpoint_folder, f"hf:{repo}", tags=["best"])

    assert (second.reference, second.new, second.tags) == (first.reference, False, ("best", "task=sst2"))
    assert server.registry.document(repo).versions["v1"].tags == ("best", "task=sst2")


def test_what_was_pushed_to_the_registry_is_pulled_over_the_protocol(hub, server, repo, checkpoint_folder):
    manifest = describe(checkpoint_folder)
    server.registry.publish(ref(repo).anywhere(), manifest, checkpoint_folder, aliases=["champion"])
    pulled = hub.pull(ref(repo, "champion"))

    assert pulled.digest == manifest.digest
    assert delta_files(pulled.folder) == content_of(checkpoint_folder)
    assert set(api(hub).list_repo_files(repo)) == set(content_of(checkpoint_folder))


def test_a_new_repository_has_no_version_until_something_is_pushed(hub, server, repo, checkpoint_folder):
    api(hub).create_repo(repo)
    with pytest.raises(NotFoundError, match="nothing was pushed yet"):
        hub.document(ref(repo))
    pushed = hub.push(checkpoint_folder, f"hf:{repo}")
    assert [it.digest for it in server.registry.document(repo).versions.values()] == [pushed.digest]


@pytest.fixture
def registered(server, repo, new_checkpoint):
    """A delta of two versions that went into the registry directly, whose alias has moved; its folders, older first."""
    folders = [new_checkpoint(), new_checkpoint(value=0.7)]
    for folder in folders:
        server.registry.publish(
            ref(repo).anywhere(),
            describe(folder),
            folder,
            aliases=["champion"],
            message="two epochs",
            tags=["task=ner"],
        )
    return folders


@pytest.mark.parametrize("older_client", [False, True])
def test_an_older_version_of_the_registry_pushed_through_the_hub_stays_that_version(
    hub, server, repo, registered, older_client, monkeypatch
):
    if older_client:  # which does not see that the version is there, and commits it
        monkeypatch.setattr("deltahub.sources.huggingface.publishing.Push._older", lambda *_: None)
    again = hub.push(registered[0], f"hf:{repo}", tags=["best"], aliases=["stable"])
    document = server.registry.document(repo)

    assert (again.new, again.digest, again.tags) == (False, describe(registered[0]).digest, ("best", "task=ner"))
    assert (list(document.versions), document.latest) == (["v1", "v2"], "v2")
    assert (document.versions["v1"].tags, document.versions["v2"].tags) == (("best", "task=ner"), ("task=ner",))
    assert document.aliases == {"champion": "v2", "stable": "v1"}


def test_files_that_a_client_of_the_hugging_face_hub_commits_move_the_branch_as_in_git(hub, server, repo, registered):
    api(hub).upload_folder(repo_id=repo, folder_path=registered[0])
    assert server.registry.document(repo).latest == "v1"


def test_a_message_that_names_another_delta_is_a_commit_as_any_other(hub, server, repo, registered):
    named = f"DeltaHub-Digest: {describe(registered[0]).digest}"
    api(hub).upload_file(
        repo_id=repo,
        path_in_repo="notes.txt",
        path_or_fileobj=b"mine",
        commit_message="notes",
        commit_description=named,
    )
    assert server.registry.document(repo).latest == "v3"


def test_the_history_through_a_hub_is_that_of_its_registry(hub, server, repo, registered, new_checkpoint):
    hub.push(new_checkpoint(value=0.9), f"hf:{repo}", aliases=["champion"])
    remove(server.registry, repo, "v1", message="spoiled")
    seen, kept = hub.document(ref(repo))[1], server.registry.document(repo)

    assert (seen.log, seen.aliases, seen.removed, seen.latest) == (kept.log, kept.aliases, kept.removed, "v3")
    assert [(it.action, it.after) for it in seen.log if it.what == "champion"][-1] == ("alias", "v3")
    assert [it.message for it in seen.versions.values()] == ["two epochs", ""]
    assert "DeltaHub-Digest" not in str(kept)


@pytest.mark.parametrize("version", [None, "v1", "old", "commit", "digest"])
def test_a_version_is_amended_through_a_hub_as_in_its_registry(hub, server, repo, registered, version):
    digest = describe(registered[0 if version else 1]).digest
    server.registry.update(repo, lambda document: document.with_alias("old", "v1", *server.registry.stamp()))
    asked = {"commit": commit_id(digest), "digest": digest[:20]}.get(version, version)
    amendment = Amendment("three epochs", {"accuracy": 0.93}, "on SST-2", "# Better")
    exact, entry = hub.amend(ref(repo, asked) if asked else ref(repo), amendment)

    document = server.registry.document(repo)
    assert document.versions[exact.version].digest == entry.digest == digest
    assert document.versions[exact.version] == entry
    assert (entry.message, entry.card, entry.summary["description"]) == ("three epochs", "# Better", "on SST-2")
    assert {(move.what, move.author) for move in document.log if move.action == "amend"} == {
        (exact.version, api(hub).whoami()["name"])
    }
    seen = hub.document(ref(repo))[1].versions[exact.version]
    assert (seen.message, seen.card, seen.summary) == (
        "three epochs",
        "# Better",
        {"metrics": {"accuracy": 0.93}, "description": "on SST-2"},
    )


def test_who_may_not_push_may_not_amend(user, server, repo, registered):
    reader = user(token=server.token("read"))
    with pytest.raises(StorageError, match="no right to that"):
        reader.amend(ref(repo), Amendment("mine"))
    assert not server.registry.document(repo).amended


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"metrics": {"a": True}},
        {"metrics": [1]},
        {"metrics": {"a": 10**400}},
        {"message": 1},
        {"card": "x" * 200_000},
    ],
)
def test_what_cannot_be_said_about_a_version_is_refused(hub, server, repo, registered, body):
    calls = hub.source("hf").calls
    url = f"{calls.endpoint}/api/deltahub/{repo}/amend/v1"
    assert huggingface_hub.get_session().post(url, json=body, headers=calls.headers()).status_code == 400
    assert not server.registry.document(repo).amended


def test_a_list_of_a_hub_is_that_of_its_registry(hub, server, repo, registered, new_checkpoint, tmp_path):
    hub.push(new_checkpoint(value=0.9), f"hf:{repo}-two", tags=["best"])
    listed, _ = Index(tmp_path / "index.sqlite3", server.registry).search(Query())
    for entry in listed:
        entry.summary.pop("card", None)
    assert hub.search(Query(), "hf") == (listed, 2)


def test_plain_files_are_pulled_from_a_hub_as_from_its_registry(hub, server, repo):
    files = {"config.json": b"{}", "sub/notes.txt": b"mine"}
    upload(hub, repo, files)
    pulled = hub.pull(ref(repo))

    assert pulled.digest == server.registry.document(repo).versions["v1"].digest
    assert {path: (pulled.folder / path).read_bytes() for path in files} == files
    assert hub.pull(ref(repo, str(pulled.reference.version))).digest == pulled.digest


def test_all_of_a_hub_is_copied_into_a_registry_with_its_history(hub, server, repo, registered, new_checkpoint):
    upload(hub, f"{repo}-files", {"notes.txt": b"mine"})
    target = Registry(MemoryStore(), "mine")
    source = hub.source("hf")
    done = [*copy_from_hub(source, target), *copy_from_hub(source, target, [f"{repo}-files"])]
    again = list(copy_from_hub(source, target))
    server.registry.publish(ref(repo).anywhere(), describe(folder := new_checkpoint(value=0.9)), folder)
    (later,) = copy_from_hub(source, target)

    assert [(it.name, it.versions, it.changed) for it in done] == [
        (repo, ("v1", "v2"), True),
        (f"{repo}-files", ("v1",), True),
    ]
    assert [(it.versions, it.changed, it.size) for it in again] == [((), False, 0)]
    assert later.versions == ("v3",)
    for name in (repo, f"{repo}-files"):
        assert target.document(name) == server.registry.document(name)
    assert set(dict(verify(target)).values()) <= {None}


def test_a_small_delta_is_fetched_in_two_requests(user, repo, checkpoint_folder, proxy):
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.seen.clear()
    pulled = user().pull(ref(repo))

    assert [path.rpartition("/")[0].rpartition("/")[2] for _, path in proxy.seen] == ["main", "pack"]
    assert delta_files(pulled.folder) == content_of(checkpoint_folder)


@pytest.mark.parametrize(
    "fault", [flipped, answer(404, code="EntryNotFound"), answer(403)], ids=["damaged", "gone", "no"]
)
def test_what_is_not_right_among_the_files_is_fetched_by_itself(user, repo, checkpoint_folder, proxy, fault):
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.breaks(fault, method="GET", words="/pack/", times=None)
    assert delta_files(user().pull(ref(repo)).folder) == content_of(checkpoint_folder)


def test_a_large_delta_is_not_offered_in_one_answer(user, repo, checkpoint_folder, proxy, monkeypatch):
    monkeypatch.setattr("deltahub.server.packs._LARGEST", 100)
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.seen.clear()
    user().pull(ref(repo))
    assert not [path for _, path in proxy.seen if "/pack/" in path]
