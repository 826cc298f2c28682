"""Between a hub of our own and the Hugging Face protocol a delta stays what it is, in both directions."""

from __future__ import annotations

import uuid

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from deltahub.checkpoint.backbone_fit import backbone_tensors
from deltahub.checkpoint.checkpoint import describe
from deltahub.errors import NotFoundError, StorageError
from deltahub.hub.copy import copy_from_hub
from deltahub.reference import DeltaPath
from deltahub.registry.amend import Amendment
from deltahub.registry.commit_message import commit_id
from deltahub.registry.edits import remove, set_tags
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Metric, Query, Search
from deltahub.registry.verify import verify
from deltahub.sources.registry import RegistrySource
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import LEAVES, content_of
from tests.sources.huggingface.test_failures import answer, flipped
from tests.sources.huggingface.test_push_and_pull import api, delta_files, ref
from tests.sources.huggingface.test_unmanifested import upload

pytestmark = [
    pytest.mark.slow,  # a hub for each test
    pytest.mark.parametrize("server", ["own"], indirect=True),
]


def test_a_delta_pushed_over_the_protocol_is_in_the_registry_under_its_digest(hub, server, repo, checkpoint_folder):
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


def test_a_delta_pushed_to_the_registry_is_pulled_over_the_protocol(hub, server, repo, checkpoint_folder):
    manifest = describe(checkpoint_folder)
    publish(server.registry, Publication(ref(repo).anywhere(), manifest, checkpoint_folder, aliases=["champion"]))
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
        publish(
            server.registry,
            Publication(
                ref(repo).anywhere(),
                describe(folder),
                folder,
                aliases=["champion"],
                message="two epochs",
                tags=["task=ner"],
            ),
        )
    return folders


@pytest.mark.parametrize("older_client", [False, True])
def test_an_older_version_of_the_registry_pushed_through_the_hub_stays_that_version(
    hub, server, repo, registered, older_client, monkeypatch
):
    if older_client:  # which does not see that the version is there, and commits it
        monkeypatch.setattr("deltahub.sources.huggingface.push.Push._older", lambda *_: None)
    again = hub.push(registered[0], f"hf:{repo}", tags=["best"], aliases=["stable"])
    document = server.registry.document(repo)

    assert (again.new, again.digest, again.tags) == (False, describe(registered[0]).digest, ("best", "task=ner"))
    assert (list(document.versions), document.latest) == (["v1", "v2"], "v2")
    assert (document.versions["v1"].tags, document.versions["v2"].tags) == (("best", "task=ner"), ("task=ner",))
    assert document.aliases == {"champion": "v2", "stable": "v1"}


@pytest.mark.filterwarnings("ignore:Warnings while validating metadata")  # of the client: the card has none
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


def test_amending_needs_the_right_to_push(user, server, repo, registered):
    reader = user(token=server.token("read"))
    with pytest.raises(StorageError, match="lacks the permission for that"):
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
def test_invalid_version_metadata_is_refused(hub, server, repo, registered, body):
    calls = hub.source("hf").calls
    url = f"{calls.endpoint}/api/deltahub/{repo}/amend/v1"
    assert huggingface_hub.get_session().post(url, json=body, headers=calls.headers()).status_code == 400
    assert not server.registry.document(repo).amended


@pytest.fixture
def lists(hub, server, repo, registered, new_checkpoint, tmp_path):
    """What a hub and its registry list, which has deltas pushed directly and through the hub, plain files, and a repo without any."""
    space = repo.partition("/")[0]
    hub.push(new_checkpoint(value=0.9, backbone_checkpoint_name="t5"), f"hf:{repo}-two", tags=["best", "accuracy=0.9"])
    upload(
        hub, f"{repo}-files", {"config.json": b"{}", "README.md": b"---\nlicense: mit\n---\n", "big.dat": bytes(4000)}
    )
    api(hub).create_repo(f"{space}/new-{uuid.uuid4().hex[:8]}")
    direct = RegistrySource(server.registry, tmp_path / "index")
    return lambda query, **options: (
        hub.search(Search(query, **options), "hf"),
        direct.search(Search(query, **options)),
    )


@pytest.mark.parametrize(
    ("query", "count"),
    [
        (Query(), 3),
        (Query(sort="size"), 3),
        (Query(sort="size", reverse=True), 3),
        (Query(sort="parameters"), 3),
        (Query(sort="accuracy"), 3),
        (Query(author="nobody"), 0),
        (Query(author="acme"), 0),
        (Query(text="files"), 1),
        (Query(text="Bert tiny"), 1),
        (Query(tags=("task=ner",)), 1),
        (Query(delta_type="files"), 1),
        (Query(metrics=(Metric.parse("accuracy>=0.9"),)), 1),
    ],
    ids=lambda it: it.to_json() if isinstance(it, Query) else "",
)
def test_a_list_of_a_hub_is_that_of_its_registry(lists, query, count):
    through, direct = lists(query)
    assert through == direct
    assert through[1] == count
    assert lists(query, limit=1, offset=1)[0] == lists(query, limit=1, offset=1)[1]


def test_a_hub_and_its_registry_are_searched_by_author_alike(lists, proxy):
    authors = {it.author for it in lists(Query())[1][0]}
    assert len(authors) == 2
    proxy.requests.clear()
    for author in authors:
        through, direct = lists(Query(author=author))
        assert through == direct
        assert through[1]
    assert len(proxy.requests) == 2


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("size", [10, 11])
def test_a_hub_and_its_registry_find_the_same_fitting_deltas(lists, proxy, tmp_path, near, size):
    shapes = {leaf.name: leaf.shape for leaf in LEAVES} | {"embed.weight": (size, 4)}
    (tmp_path / "backbone").mkdir()
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "backbone/model.safetensors"
    )
    proxy.requests.clear()
    through, direct = lists(Query(near=near), backbone=backbone_tensors(tmp_path / "backbone"))
    assert through == direct
    assert len([path for _, path in proxy.requests if "backbone.json" in path]) == 1  # one record for both deltas


def test_a_private_delta_is_in_no_list_of_a_stranger_however_it_is_asked_for(hub, user, server, lists, repo):
    api(hub).update_repo_settings(f"{repo}-two", private=True)
    stranger = user(token=server.token("read", "beta"))
    assert f"{repo}-two" not in [it.name for it in stranger.search(Search(), "hf")[0]]
    assert f"{repo}-two" in [it.name for it in hub.search(Search(), "hf")[0]]


@pytest.mark.parametrize(
    "query", ["[]", '{"sort": 1}', '{"hidden": ["a"]}', '{"metrics": ["a"]}', "{", '{"tags": "a"}']
)
def test_a_query_that_is_none_is_refused(hub, server, query):
    calls = hub.source("hf").calls
    url = f"{calls.endpoint}/api/models"
    assert (
        huggingface_hub.get_session().get(url, params={"deltahub": query}, headers=calls.headers()).status_code == 400
    )


def test_a_name_in_nearly_a_private_namespace_is_known_by_a_hub(hub, lists):
    near = hub.source("hf").neighbours(DeltaPath("amce/nerr"))
    assert near
    assert all(name.startswith("acme/") for name in near)
    assert hub.source("hf").neighbours(DeltaPath("other/ner")) == ()


def test_plain_files_are_pulled_from_a_hub_as_from_its_registry(hub, server, repo):
    files = {"config.json": b"{}", "sub/notes.txt": b"mine"}
    upload(hub, repo, files)
    pulled = hub.pull(ref(repo))

    assert pulled.digest == server.registry.document(repo).versions["v1"].digest
    assert {path: (pulled.folder / path).read_bytes() for path in files} == files
    assert hub.pull(ref(repo, str(pulled.reference.version))).digest == pulled.digest


def test_all_of_a_hub_is_copied_into_a_registry_with_its_history(hub, server, repo, registered, new_checkpoint):
    upload(hub, f"{repo}-files", {"notes.txt": b"mine", "README.md": b"---\nlicense: mit\n---\n"})
    target = Registry(MemoryStore(), "mine")
    source = hub.source("hf")
    done = list(copy_from_hub(source, target))
    again = list(copy_from_hub(source, target))
    publish(server.registry, Publication(ref(repo).anywhere(), describe(folder := new_checkpoint(value=0.9)), folder))
    hub.amend(ref(repo, "v2"), Amendment("three epochs", {"accuracy": 0.9}, "on SST-2", "# Better"))
    set_tags(server.registry, repo, "v1", ["best"], [])
    later, _ = copy_from_hub(source, target)

    assert [(it.name, it.versions, it.changed) for it in done] == [
        (repo, ("v1", "v2"), True),
        (f"{repo}-files", ("v1",), True),
    ]
    assert [(it.versions, it.changed, it.size) for it in again] == [((), False, 0)] * 2
    assert later.versions == ("v3",)
    for name in (repo, f"{repo}-files"):
        assert target.document(name) == server.registry.document(name)
    assert set(dict(verify(target)).values()) <= {None}


def test_a_small_delta_is_fetched_in_two_requests(user, repo, checkpoint_folder, proxy):
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.requests.clear()
    pulled = user().pull(ref(repo))

    assert [path.rpartition("/")[0].rpartition("/")[2] for _, path in proxy.requests] == ["main", "pack"]
    assert delta_files(pulled.folder) == content_of(checkpoint_folder)


@pytest.mark.parametrize(
    "fault", [flipped, answer(404, code="EntryNotFound"), answer(403)], ids=["damaged", "gone", "no"]
)
def test_a_damaged_file_is_downloaded_separately(user, repo, checkpoint_folder, proxy, fault):
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.breaks(fault, method="GET", words="/pack/", times=None)
    assert delta_files(user().pull(ref(repo)).folder) == content_of(checkpoint_folder)


def test_a_large_delta_is_not_offered_in_one_answer(user, repo, checkpoint_folder, proxy, monkeypatch):
    monkeypatch.setattr("deltahub.server.routes.packs._LARGEST", 100)
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.requests.clear()
    user().pull(ref(repo))
    assert not [path for _, path in proxy.requests if "/pack/" in path]
