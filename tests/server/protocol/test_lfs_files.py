"""Large files of the whole history: listed, and removed from all of it."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

REPO = "acme/ner"


@pytest.fixture
def repository(api) -> str:
    """A repository with large and small files on two branches."""
    api.create_repo(REPO)
    for path in ("a.bin", "a.txt", "b.bin"):
        api.upload_file(path_or_fileobj=path.encode(), path_in_repo=path, repo_id=REPO)
    api.create_branch(REPO, branch="dev")
    api.upload_file(path_or_fileobj=b"dev", path_in_repo="dev.bin", repo_id=REPO, revision="dev")
    return REPO


def test_large_files_are_removed_from_every_version(api, repository, tmp_path):
    files = list(api.list_lfs_files(repository))
    assert {(file.filename, file.ref) for file in files} == {("a.bin", "main"), ("b.bin", "main"), ("dev.bin", "dev")}
    before = [commit.commit_id for commit in api.list_repo_commits(repository)]
    api.permanently_delete_lfs_files(repository, [file for file in files if file.ref == "main"])

    assert [file.filename for file in api.list_lfs_files(repository)] == ["dev.bin"]
    assert api.list_repo_files(repository) == [".gitattributes", "a.txt"]
    assert set(api.list_repo_files(repository, revision="dev")) == {".gitattributes", "a.txt", "dev.bin"}
    assert not any(api.revision_exists(repository, commit) for commit in before[:-1])
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(repository, "a.bin", cache_dir=tmp_path)
    assert api.upload_file(path_or_fileobj=b"new", path_in_repo="new.txt", repo_id=repository).oid
    assert "dev.bin" not in api.list_repo_files(repository)


def test_a_file_of_a_tagged_version_stays(hub, user, api, repository):
    api.create_tag(repository, tag="kept", revision="v1")
    files = [file for file in api.list_lfs_files(repository) if file.filename == "a.bin"]
    state = hub.registry.document(repository)
    with pytest.raises(HfHubHTTPError, match="Delete the tags first"):
        api.permanently_delete_lfs_files(repository, files)
    with pytest.raises(HfHubHTTPError, match="rewrite_history"):
        api.permanently_delete_lfs_files(repository, files, rewrite_history=False)
    with pytest.raises(HfHubHTTPError):
        list(user(hub, "read").list_lfs_files(repository))
    assert hub.registry.document(repository) == state


def test_nobody_likes_anything(api, repository):
    assert api.list_liked_repos("ada").total == 0
    assert list(api.list_repo_likers(repository)) == []
    with pytest.raises(HfHubHTTPError, match="has no likes"):
        api.unlike(repository)
