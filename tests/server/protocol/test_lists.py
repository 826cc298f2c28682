"""Lists: filters, words, order, pages, and only what the caller may see."""

from __future__ import annotations

import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.server import paging
from deltahub.server.routes import trees


def card(**facts: str) -> bytes:
    lines = "".join(f"{key}: {value}\n" for key, value in facts.items())
    return f"---\n{lines}---\n# x\n".encode()


@pytest.fixture
def many(api) -> HfApi:
    for number in range(7):
        repo = f"acme/m{number}"
        api.create_repo(repo)
        data = card(tags=f"[even{number % 2 == 0}]", base_model="bert", pipeline_tag="text-classification")
        api.upload_file(repo_id=repo, path_or_fileobj=data, path_in_repo="README.md")
    api.create_repo("beta/empty")
    return api


def ids(models) -> list[str]:
    return sorted(model.id for model in models)


def test_all_pages_together_are_the_whole_list(many, monkeypatch):
    monkeypatch.setattr(paging, "PAGE", 2)
    names = [*(f"acme/m{number}" for number in range(7)), "beta/empty"]

    assert ids(many.list_models()) == names
    assert len(list(many.list_models(limit=5))) == 5
    assert len(list(many.list_models(limit=1))) == 1
    assert ids(many.list_models(author="acme", filter="evenTrue")) == [f"acme/m{number}" for number in (0, 2, 4, 6)]


def test_pages_of_trees_and_commits_lead_to_each_other(many, monkeypatch):
    monkeypatch.setattr(paging, "PAGE", 2)
    for number in range(5):
        many.upload_file(repo_id="acme/m0", path_or_fileobj=b"%d" % number, path_in_repo=f"sub %/f{number}")

    assert len(list(many.list_repo_tree("acme/m0", recursive=True))) == 8
    assert len(list(many.list_repo_tree("acme/m0", "sub %"))) == 5
    assert len(many.list_repo_commits("acme/m0")) == 7


def test_the_list_is_filtered_by_every_tag_and_by_author_and_words(many):
    assert ids(many.list_models(filter=["evenFalse", "base_model:bert"])) == ["acme/m1", "acme/m3", "acme/m5"]
    assert ids(many.list_models(filter="nothing")) == []
    assert ids(many.list_models(author="BETA")) == ["beta/empty"]
    assert ids(many.list_models(search="m3")) == ["acme/m3"]
    assert ids(many.list_models(search="empty")) == ["beta/empty"]
    assert ids(many.list_models(pipeline_tag="text-classification", limit=3)) != []


def test_the_newest_comes_first(many, monkeypatch):
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2099-01-01T00:00:00Z")
    many.upload_file(repo_id="acme/m4", path_or_fileobj=b"1", path_in_repo="new")

    first = next(iter(many.list_models(sort="last_modified")))
    assert (first.id, first.last_modified.year) == ("acme/m4", 2099)
    assert first.created_at.year != 2099


def test_full_lists_contain_files_and_cards(many):
    plain, full = (next(iter(many.list_models(search="m1", **options))) for options in ({}, {"full": True}))
    assert (plain.siblings, plain.card_data) == (None, None)
    assert ([file.rfilename for file in full.siblings], full.card_data.base_model) == (
        [".gitattributes", "README.md"],
        "bert",
    )
    some = next(iter(many.list_models(search="m1", expand=["sha", "author"])))
    assert (some.author, some.private, len(some.sha)) == ("acme", None, 40)


def test_private_repositories_are_listed_for_those_who_may_see_them(hub, many, user):
    many.create_repo("acme/secret", private=True)
    many.create_repo("beta/secret", private=True)
    many.upload_file(repo_id="acme/secret", path_or_fileobj=b"1", path_in_repo="a")

    assert ids(user(hub, "read", "acme").list_models(search="secret")) == ["acme/secret"]
    assert ids(user(hub, "read", "beta").list_models(search="secret")) == ["beta/secret"]
    assert ids(user(hub, "read").list_models(search="secret")) == ["acme/secret", "beta/secret"]
    assert ids(HfApi(hub.url, token=False).list_models(search="secret")) == []


def test_a_user_lists_the_repositories_they_may_change(hub, many, user):
    many.create_repo("beta/secret", private=True)
    mine = user(hub, "write", "beta")
    found = {repo.id: (repo.visibility, repo.type, repo.storage) for repo in mine.list_user_repos()}

    assert found == {"beta/empty": ("public", "model", 0), "beta/secret": ("private", "model", 0)}
    assert all(repo.storage > 0 for repo in mine.list_user_repos(namespace="acme"))
    assert len(list(mine.list_user_repos(namespace="acme"))) == 7
    assert requests.get(f"{hub.url}/api/settings/repositories", timeout=30).status_code == 401


def test_deltas_pushed_directly_to_the_registry_are_listed_too(hub, api, new_checkpoint):
    from deltahub.checkpoint.checkpoint import describe

    folder = new_checkpoint()
    publish(hub.registry, Publication(Reference.parse("acme/pushed"), describe(folder), folder, tags=["sst2"]))

    (found,) = api.list_models(filter=["sst2", "base_model:bert-tiny", "deltahub", "lora"])
    assert (found.id, found.library_name, found.sha) == (
        "acme/pushed",
        "deltahub",
        hub.registry.document("acme/pushed").versions["v1"].digest[7:47],
    )


@pytest.mark.parametrize("query", ["limit=x", "cursor=-1", "limit=1e3", "cursor=9999999999999999999"])
def test_numbers_that_are_none_are_refused(hub, query):
    assert requests.get(f"{hub.url}/api/models?{query}", timeout=30).status_code == 400


def test_a_page_after_the_last_is_empty(hub):
    assert requests.get(f"{hub.url}/api/models?cursor=1000", timeout=30).json() == []


@pytest.fixture
def wide(hub, api) -> str:
    """A repository of twenty files and three commits."""
    api.create_repo("acme/wide")
    for number in range(3):
        files = [CommitOperationAdd(f"{at}.txt", f"{at} {number * (at == 0)}".encode()) for at in range(20)]
        api.create_commit("acme/wide", files, commit_message=f"commit {number}")
    return "acme/wide"


def test_more_paths_than_may_be_asked_for_at_once_are_refused(api, wide, monkeypatch):
    monkeypatch.setattr(trees, "_MOST_PATHS", 3)
    assert len(api.get_paths_info(wide, ["1.txt", "2.txt", "3.txt"])) == 3
    with pytest.raises(HfHubHTTPError, match="Ask in several requests"):
        api.get_paths_info(wide, ["1.txt", "2.txt", "3.txt", "4.txt"])


def test_a_commit_too_far_back_is_left_out_rather_than_wrong(api, wide, monkeypatch):
    newest, _, oldest, first = [commit.commit_id for commit in api.list_repo_commits(wide)]
    found = {item.path: item.last_commit for item in api.list_repo_tree(wide, expand=True)}
    assert (found["0.txt"].oid, found["1.txt"].oid, found[".gitattributes"].oid) == (newest, oldest, first)
    monkeypatch.setattr(trees, "_LOOKED_AT", 120)
    found = {item.path: item.last_commit for item in api.list_repo_tree(wide, expand=True)}
    assert (found["0.txt"].oid, found["1.txt"]) == (newest, None)


def test_a_page_of_models_with_their_files_ends_where_it_names_many(api, wide, monkeypatch):
    api.create_repo("acme/other")
    api.create_commit("acme/other", [CommitOperationAdd("a.txt", b"a")], commit_message="a")
    monkeypatch.setattr("deltahub.server.routes.listing._MOST_FILES", 1)
    found = {model.id: len(model.siblings) for model in api.list_models(full=True)}
    assert found == {"acme/wide": 21, "acme/other": 2}


def test_a_version_has_no_more_files_than_can_be_listed(api, wide, monkeypatch):
    monkeypatch.setattr("deltahub.server.routes.changes._MOST_FILES", 20)
    api.create_commit(wide, [CommitOperationAdd("0.txt", b"new")], commit_message="as many")
    with pytest.raises(HfHubHTTPError, match="20 are the most"):
        api.create_commit(wide, [CommitOperationAdd("more.txt", b"new")], commit_message="more")


def test_a_tree_of_many_folders_is_listed_in_one_pass(hub, api, monkeypatch):
    api.create_repo("acme/wide")
    paths = [f"{a}/{b}/{c}" for a in range(5) for b in range(10) for c in range(10)]
    made = api.create_commit("acme/wide", [CommitOperationAdd(path, b"") for path in paths], commit_message="wide")
    calls = []
    monkeypatch.setattr(trees, "_folders", lambda files, folders=trees._folders: calls.append(1) or folders(files))
    listed = list(api.list_repo_tree("acme/wide", recursive=True, expand=True))

    assert len(listed) == 500 + 50 + 5 + 1
    assert {item.last_commit.oid for item in listed if item.path != ".gitattributes"} == {made.oid}
    assert len(calls) == 6  # one for each page of 100
