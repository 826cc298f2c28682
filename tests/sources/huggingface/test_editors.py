"""A registry, a hub that serves one, and as far as git goes a plain hub, are changed through one interface and refuse with the same errors."""

from __future__ import annotations

import itertools
import uuid

import huggingface_hub
import pytest

from deltahub.cache.cache import Cache
from deltahub.checkpoint.checkpoint import describe
from deltahub.errors import (
    ApprovalNeededError,
    ConfigError,
    ConflictError,
    InUseError,
    NotFoundError,
    NoVersionError,
    ReferenceSyntaxError,
    RefusedMoveError,
    RemovedError,
    StorageError,
)
from deltahub.hub import edits
from deltahub.hub.hub import Hub
from deltahub.reference import DeltaPath, Reference
from deltahub.registry.actor import Actor
from deltahub.registry.amend import Amendment
from deltahub.registry.commit_message import commit_id
from deltahub.registry.editor import RegistryEditor
from deltahub.registry.edits import set_alias
from deltahub.registry.promotion.policy import Policy, write_policy
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.server.settings import Settings
from deltahub.sources.huggingface import HuggingFace
from deltahub.sources.huggingface.verify import verify
from deltahub.sources.registry import RegistrySource
from deltahub.stores.base import object_key
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import save_checkpoint
from tests.hub_server import hub_server

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return [save_checkpoint(root / str(number), value=number / 4) for number in range(2)]


@pytest.fixture(scope="module")
def served():
    """One hub for all tests: each has a delta of its own."""
    with hub_server(Registry(MemoryStore(), "served"), Settings(rate=0)) as running:
        yield running


@pytest.fixture
def path(served, folders) -> DeltaPath:
    """A delta of two versions, of which the first is the champion."""
    name = DeltaPath(f"acme/x{next(_numbers)}")
    for number, folder in enumerate(folders):
        aliases = [] if number else ["champion"]
        publish(served.registry, Publication(Reference(name), describe(folder), folder, aliases=aliases))
    return name


@pytest.fixture(scope="module")
def remote(served) -> HuggingFace:
    return HuggingFace("team", served.url, served.token("write", name="alice"), pause=lambda _: None)


@pytest.fixture(params=["registry", "hub"])
def source(request, served, remote, tmp_path):
    if request.param == "hub":
        return remote
    return RegistrySource(served.registry.acting(Actor("alice")), tmp_path)


@pytest.fixture
def editor(source, path):
    return source.editor(path)


def test_an_alias_moves_with_its_author_and_its_reason(editor, served, path):
    document = editor.set_alias(path, "champion", "v2", expect="v1", reason="better on short texts").document
    assert document == served.registry.document(path)
    move = document.log[-1]
    assert (document.aliases, move.author, move.reason) == ({"champion": "v2"}, "alice", "better on short texts")


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda it, path: it.set_alias(path, "champion", "v2", expect="v2"), ConflictError, "expected v2, found v1"),
        (
            lambda it, path: it.set_alias(path, "champion", "v2", expect=None),
            ConflictError,
            "expected no entry, found v1",
        ),
        (lambda it, path: it.set_alias(path, "prod", None), NotFoundError, "prod was not found"),
        (lambda it, path: it.set_alias(path, "prod", "v9"), NoVersionError, "@v9 was not found"),
        (lambda it, path: it.set_alias(path, "v7", "v1"), ReferenceSyntaxError, "v7"),
        (lambda it, path: it.undo(path, "prod"), NotFoundError, "A move of the alias"),
        (lambda it, path: it.set_tags(path, "v1", [], ["best"]), NotFoundError, "The tag 'best'"),
        (lambda it, path: it.set_tags(path, "v1", ["a b"], []), ReferenceSyntaxError, "a b"),
        (lambda it, path: it.remove(path, "v1"), InUseError, "the alias champion points to it"),
        (lambda it, path: it.amend(path, "v9", Amendment("x")), NoVersionError, "@v9"),
    ],
)
def test_a_change_that_is_refused_is_refused_with_the_same_error_everywhere(editor, served, path, change, error, said):
    before = served.registry.document(path)
    with pytest.raises(error, match=said) as raised:
        change(editor, path)
    assert type(raised.value) is error
    assert served.registry.document(path) == before


def test_undo_takes_one_alias_back_and_leaves_the_others(editor, path):
    editor.set_alias(path, "champion", "v2")
    editor.set_alias(path, "prod", "v2")
    undone = editor.undo(path, "champion")
    assert (undone.document.aliases, undone.undone.before) == ({"champion": "v1", "prod": "v2"}, "v1")
    assert editor.undo(path).document.aliases == {"champion": "v1"}
    assert editor.undo(path).document.aliases == {}


def test_tags_metadata_and_removal(editor, path, served):
    tagged = editor.set_tags(path, None, ["task=ner", "best"], [])
    assert (tagged.version, tagged.document.versions["v2"].tags) == ("v2", ("best", "task=ner"))
    amended = editor.amend(path, "champion", Amendment("why", {"f1": 0.9}))
    entry = amended.document.versions[amended.version]
    assert (amended.version, entry.message, entry.summary["metrics"]["f1"]) == ("v1", "why", 0.9)
    digest = served.registry.document(path).versions["v2"].digest
    with pytest.raises(InUseError, match="lock file"):
        editor.remove(path, "v2", needed=[digest])
    removed = editor.remove(path, "v2", message="a mistake")
    assert (removed.version, removed.document.removed["v2"].message) == ("v2", "a mistake")
    with pytest.raises(RemovedError, match="a mistake"):
        editor.remove(path, "v2")


def test_a_rename_leaves_a_redirect_and_takes_no_name_in_use(editor, path, served, folders):
    new = DeltaPath(f"{path}-new")
    assert editor.rename(path, new).document.name == new
    assert served.registry.document(path).name == new
    other = DeltaPath(f"acme/other{next(_numbers)}")
    publish(served.registry, Publication(Reference(other), describe(folders[0]), folders[0]))
    with pytest.raises(InUseError):
        editor.rename(new, other)


def test_a_change_whose_answer_was_lost_is_made_once(served, path, remote, monkeypatch):
    from huggingface_hub.utils import get_session

    session, sent = get_session(), []
    post = session.post

    def lossy(*arguments, **options):
        answer = post(*arguments, **options)
        sent.append(answer.status_code)
        if len(sent) == 1:
            answer.status_code = 503
            answer.json = dict
        return answer

    monkeypatch.setattr(session, "post", lossy)
    for change, length in (
        (lambda it: it.set_alias(path, "champion", "v2", expect="v1"), 4),
        (lambda it: it.undo(path, "champion"), 5),
        (lambda it: it.set_tags(path, "v1", ["best"], []), 6),
        (lambda it: it.remove(path, "v2"), 7),
    ):
        sent.clear()
        edited = change(remote.editor(path))
        assert (len(sent), len(edited.document.log)) == (2, length)
    assert edited.version == "v2"


def test_of_two_who_move_an_alias_at_once_one_gets_the_conflict(served, path, monkeypatch):
    first = RegistryEditor(served.registry.acting(Actor("alice", "write", uuid.uuid4().hex)))
    read, others = Registry.read, iter([lambda: set_alias(served.registry, path, "champion", "v2", expect="v1")])

    def overtaken(registry, name):
        found = read(registry, name)
        next(others, lambda: None)()
        return found

    monkeypatch.setattr(Registry, "read", overtaken)
    with pytest.raises(ConflictError, match="expected v1, found v2"):
        first.set_alias(path, "champion", None, expect="v1")


def test_who_may_not_write_changes_nothing(served, path):
    for token in (served.token("read"), served.token("write", "others"), False):
        hub = HuggingFace("team", served.url, token, pause=lambda _: None)
        with pytest.raises((StorageError, NotFoundError)):
            hub.editor(path).set_alias(path, "champion", "v2")
    assert served.registry.document(path).aliases == {"champion": "v1"}


def test_a_rename_needs_both_namespaces(served, path):
    hub = HuggingFace("team", served.url, served.token("write", "acme"), pause=lambda _: None)
    with pytest.raises(StorageError, match="may write to acme, not to others"):
        hub.editor(path).rename(path, DeltaPath("others/x"))


def test_references_are_changed_by_source_version_or_commit(served, remote, path, tmp_path):
    hub = Hub({"team": remote}, Cache(tmp_path / "cache"))
    commit = commit_id(served.registry.document(path).versions["v2"].digest)
    changed = edits.set_alias(hub, Reference.parse(f"team:{path}@{commit}"), "champion")
    assert (str(changed.reference), changed.target) == (f"team:{path}@champion", "v2")
    with pytest.raises(ConflictError, match="expected v1, found v2"):
        edits.set_alias(hub, Reference.parse(f"team:{path}@v1"), "champion", remove=True)
    assert edits.rename(hub, Reference.parse(f"team:{path}"), Reference.parse(f"{path}-b"))[1] == path


def test_a_hub_is_verified_from_outside(served, remote, path):
    assert dict(verify(remote, [path])) == {f"{path}@v1": None, f"{path}@v2": None}
    document = served.registry.document(path)
    entry = next(
        file
        for file in served.registry.manifest(document.versions["v2"].digest).files
        if file.path == "delta.safetensors"
    )
    key = object_key(entry.sha256)
    data = served.registry.store.read(key)
    served.registry.store._data[key] = data[:-1] + b"!"
    try:
        damage = dict(verify(remote, [path]))
    finally:
        served.registry.store._data[key] = data
    assert damage[f"{path}@v1"] is None
    assert "delta.safetensors" in damage[f"{path}@v2"]


def test_a_repo_of_git_is_changed_as_far_as_git_goes(hub, repo, checkpoint_folder, new_checkpoint):
    hub.push(checkpoint_folder, f"hf:{repo}", aliases=["champion"])
    hub.push(new_checkpoint(value=0.7), f"hf:{repo}")
    reference = Reference.parse(f"hf:{repo}")
    assert edits.set_alias(hub, reference, "champion", expect="v1").target == "v2"
    with pytest.raises(ConflictError, match="expected v1, found v2"):
        edits.set_alias(hub, reference, "champion", expect="v1")
    tagged = edits.set_tags(hub, reference, ["best", "task=ner"])
    assert {"best", "task=ner"} <= {*tagged.document.versions["v2"].tags}
    assert "best" not in edits.set_tags(hub, reference, remove=["best"]).document.versions["v2"].tags
    with pytest.raises(InUseError, match="the alias champion"):
        edits.remove(hub, reference.at("v2"))
    assert list(edits.remove(hub, reference.at("v1")).document.versions) == ["v2"]
    with pytest.raises(ConfigError, match="keeps no log of aliases"):
        edits.undo(hub, reference)
    assert edits.set_alias(hub, reference, "champion", remove=True).target is None


@pytest.fixture
def guarded(served, path):
    """The rules: two others approve the move of a champion, and only the token `lead` may ask."""
    rule = {"deltas": "acme/*", "aliases": ["champion"], "approvals": 2, "movers": {"names": ["lead"]}}
    write_policy(served.registry.store, Policy.parse({"rules": [rule]}), Actor("root", "admin"))
    yield
    write_policy(served.registry.store, Policy(), Actor("root", "admin"))


@pytest.fixture(scope="module")
def people(served):
    """Hubs as tokens see them, by their names."""

    def hub(name: str, scope: str = "write") -> HuggingFace:
        return HuggingFace("team", served.url, served.token(scope, name=name), pause=lambda _: None)

    return {name: hub(name) for name in ("lead", "bob", "cat")} | {"root": hub("root", "admin")}


def test_approvals_through_a_hub_count_by_token(served, guarded, people, path):
    editors = {name: source.editor(path) for name, source in people.items()}
    with pytest.raises(ApprovalNeededError, match="2 others must approve it, and 0 did"):
        editors["lead"].set_alias(path, "champion", "v2", reason="better")
    with pytest.raises(RefusedMoveError, match="only lead may make it, not root"):
        editors["root"].ask(path, "champion", "v2", "better")
    request = editors["lead"].ask(path, "champion", "v2", "better").request
    with pytest.raises(RefusedMoveError, match="lead asked for it"):
        editors["lead"].approve(path, request)
    editors["bob"].approve(path, request)
    document = editors["cat"].approve(path, request).document
    assert (document.aliases, document.log[-1].approved) == ({"champion": "v2"}, ("bob", "cat"))
    assert document.log[-1].author == "lead"


@pytest.mark.parametrize(
    "way",
    [
        lambda api, path: api.create_branch(path, branch="champion"),
        lambda api, path: api.delete_tag(path, tag="champion"),
        lambda api, path: api.delete_repo(path),
        lambda api, path: api.move_repo(path, "free/x"),
    ],
    ids=["branch", "delete the tag", "delete the repo", "move the repo"],
)
def test_no_client_of_the_hugging_face_hub_gets_round_the_rules(served, guarded, path, way):
    before = served.registry.document(path)
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError) as raised:
        way(huggingface_hub.HfApi(served.url, served.token("write")), path)
    assert raised.value.response.status_code in (403, 409)
    assert served.registry.document(path) == before


def test_a_push_with_a_protected_alias_through_a_hub_leaves_the_alias(served, guarded, remote, path, tmp_path):
    hub = Hub({"team": remote}, Cache(tmp_path / "cache"))
    with pytest.raises(RefusedMoveError, match="only lead may make it"):
        hub.push(save_checkpoint(tmp_path / "new", value=0.9), f"team:{path}", aliases=["champion"])
    assert served.registry.document(path).aliases == {"champion": "v1"}


def test_admins_change_the_rules_and_writers_read_them(served, guarded, people, remote):
    policy, etag = remote.policy()
    assert policy.rules[0].aliases == ("champion",)
    with pytest.raises(StorageError, match="scope admin"):
        remote.set_policy(Policy(), etag)
    assert people["root"].set_policy(Policy(), etag, "no rules").log[-1]["author"] == "root"
    with pytest.raises(ConflictError):
        people["root"].set_policy(policy, etag)
