"""Answers in the words and with the codes that huggingface_hub knows from the Hub."""

from __future__ import annotations

import warnings

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

REPO = "acme/ner"


@pytest.fixture
def repository(api) -> str:
    """A repository with one commit."""
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a/b.txt", repo_id=REPO)
    return REPO


def refusal(call, *args, **options) -> tuple[int, str]:
    """Return the status and message of the error that a call raises."""
    with pytest.raises(HfHubHTTPError) as raised:
        call(*args, **options)
    return raised.value.response.status_code, str(raised.value)


def test_references_that_exist_or_do_not_are_refused_in_the_words_of_the_hub(api, repository):
    api.create_branch(REPO, branch="dev")
    api.create_tag(REPO, tag="dev", revision="main")
    api.create_tag(REPO, tag="v0")
    assert refusal(api.create_branch, REPO, branch="dev")[0] == 409
    assert "Reference refs/heads/main already exists" in refusal(api.create_branch, REPO, branch="main")[1]
    assert "Reference refs/tags/dev already exists" in refusal(api.create_tag, REPO, tag="dev")[1]
    assert "Cannot delete refs/heads/main" in refusal(api.delete_branch, REPO, branch="main")[1]
    assert "Invalid rev id" in refusal(api.delete_branch, REPO, branch="v0")[1]
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(REPO, tag="not a tag", revision="nothing")


def test_a_branch_does_not_hide_the_tag_of_its_name(api, repository):
    tagged = api.model_info(REPO).sha
    api.create_tag(REPO, tag="dev")
    api.create_branch(REPO, branch="dev")
    ahead = api.upload_file(path_or_fileobj=b"2", path_in_repo="c", repo_id=REPO, revision="dev").oid
    assert api.model_info(REPO, revision="dev").sha == tagged
    assert api.model_info(REPO, revision="refs/tags/dev").sha == tagged
    assert api.model_info(REPO, revision="refs/heads/dev").sha == ahead


def test_a_commit_on_an_old_parent_is_a_conflict(api, repository):
    parent = api.model_info(REPO).sha
    api.upload_file(path_or_fileobj=b"2", path_in_repo="c", repo_id=REPO)
    add = [CommitOperationAdd("d", b"3")]
    status, message = refusal(api.create_commit, REPO, add, commit_message="x", parent_commit=parent)
    assert (status, "The branch was updated since you opened this page" in message) == (412, True)


def test_a_folder_is_deleted_without_a_slash_too(api, repository):
    api.create_commit(REPO, [CommitOperationDelete("a")], commit_message="delete")
    assert "a/b.txt" not in api.list_repo_files(REPO)


def test_names_are_found_in_any_case_by_those_who_may_write(hub, user, repository):
    own = user(hub, "write", "acme")
    own.upload_file(path_or_fileobj=b"2", path_in_repo="c", repo_id=REPO.upper())
    assert "c" in own.list_repo_files(REPO)
    assert own.create_repo("ACME/New").repo_id == "acme/New"
    own.delete_repo("Acme/new")


def test_a_namespace_that_differs_in_case_only_is_not_open_to_others(hub, user, api, repository):
    other = user(hub, "write", "ACME")
    assert refusal(other.upload_file, path_or_fileobj=b"2", path_in_repo="c", repo_id=REPO)[0] == 403


def test_a_missing_repository_is_named_in_the_words_of_the_client(api):
    with pytest.raises(RepositoryNotFoundError) as raised:
        api.model_info("acme/none")
    assert "acme/none was not found" in raised.value.response.json()["detail"]
    assert raised.value.response.json()["error"] == "Repository not found"


@pytest.mark.parametrize("path", ["/api/tasks", "/api/models/acme/ner/weather", "/api/nothing/acme/ner"])
def test_an_address_that_nothing_has_is_404_for_everyone(hub, repository, path):
    assert httpx2.get(hub.url + path).status_code == 404


def test_a_request_keeps_the_id_that_its_client_gave_it(hub):
    def id_of(**headers: str) -> str:
        return httpx2.get(f"{hub.url}/api/models", headers=headers).headers["x-request-id"]

    assert id_of(**{"x-request-id": "custom-id"}) == "custom-id"
    assert id_of(**{"x-amzn-trace-id": "Root=1-2"}) == "Root=1-2"
    assert len(id_of(**{"x-request-id": "a b" * 100})) == 32


def test_other_kinds_than_models_are_not_supported(api, repository):
    assert refusal(api.create_repo, REPO, repo_type="dataset")[0] == 501
    assert refusal(api.create_discussion, REPO, title="x")[0] == 501
    assert not api.repo_exists(REPO, repo_type="dataset")


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ("license: asdf", '"license" must be one of'),
        ("model-index: foo", '"model-index" must be an array'),
        ("model-index:\n- name: x", '"model-index[0].results" is required'),
        ("tags: {a: 1}", '"tags" must be a string or an array'),
        ("a: [", "cannot be read"),
    ],
)
def test_a_card_with_wrong_metadata_is_not_uploaded(api, repository, metadata, fault, monkeypatch):
    card = f"\n---\n{metadata}\n---\n\nText.\n"
    with pytest.raises(ValueError, match="Invalid metadata in README") as raised:
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=REPO)
    assert fault in str(raised.value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", api.endpoint)
    if fault.startswith('"license'):
        with pytest.raises(ValueError, match='- Error: "license" must be one of'):
            ModelCard(card).validate()


def test_a_card_without_metadata_is_uploaded_with_a_warning(api, repository):
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(path_or_fileobj=b"Text.", path_in_repo="README.md", repo_id=REPO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api.upload_file(path_or_fileobj=b"---\nlicense: mit\n---\n", path_in_repo="README.md", repo_id=REPO)
