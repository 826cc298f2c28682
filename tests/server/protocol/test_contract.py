"""What a user of huggingface_hub does with a repository, from its creation to its end, whichever way the bytes take."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.checkpoints import content_of

pytestmark = [
    pytest.mark.slow,  # every client against every server
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the client's own HTTP library
]

# Names, branches and histories are the same whichever way the bytes took; where they are kept is not.
of_names = pytest.mark.parametrize("way", ["regular", "direct"], indirect=True)

REPO = "acme/sst2"
ATTRIBUTES = ".gitattributes"  # which a repository begins with
WEIGHTS = hashlib.shake_256(b"weights").digest(450_017)


@pytest.fixture
def api(served, user) -> HfApi:
    return user(served)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Files as people upload them: large and empty ones, folders, names that must be quoted."""
    folder = tmp_path / "folder"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "t5-base"}))
    (folder / "README.md").write_text("---\ntags:\n- sst2\nbase_model: t5-base\nlibrary_name: peft\n---\n# x\n")
    (folder / "sub dir" / "größe #1%.txt").write_text("hello")
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture
def pushed(api, folder):
    """A repository with one commit."""
    api.create_repo(REPO)
    return api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="first", commit_description="more")


def raises(status: int):
    return pytest.raises(HfHubHTTPError, check=lambda error: error.response.status_code == status)


def test_uploads_are_downloaded_byte_for_byte(api, pushed, folder, tmp_path):
    found = snapshot_download(REPO, endpoint=api.endpoint, token=api.token, cache_dir=tmp_path / "cache")

    assert content_of(Path(found)).keys() - {ATTRIBUTES} == content_of(folder).keys()
    assert content_of(Path(found)).items() >= content_of(folder).items()
    assert Path(found).name == pushed.oid
    assert len(pushed.oid) == 40


def test_uploading_the_same_again_makes_no_commit(api, pushed, folder, caplog):
    again = api.upload_folder(repo_id=REPO, folder_path=folder)

    assert again.oid == pushed.oid
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["first", "initial commit"]
    assert "No files have been modified" in caplog.text


def test_a_commit_adds_deletes_and_copies_at_once(api, pushed):
    first = api.list_repo_commits(REPO)[-1].commit_id
    operations = [
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationAdd("from-stream.safetensors", io.BytesIO(WEIGHTS[::-1])),
        CommitOperationDelete("empty.txt"),
        CommitOperationDelete("sub dir/", is_folder=True),
        CommitOperationCopy("adapter_model.safetensors", "copy/of.safetensors"),
        CommitOperationCopy("adapter_config.json", "copy/config.json"),
    ]
    made = api.create_commit(REPO, operations, commit_message="all at once")

    paths = [
        ATTRIBUTES,
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "copy/config.json",
        "copy/of.safetensors",
        "from-stream.safetensors",
        "new.txt",
    ]
    assert sorted(api.list_repo_files(REPO)) == paths
    assert [(commit.commit_id, commit.title) for commit in api.list_repo_commits(REPO)] == [
        (made.oid, "all at once"),
        (pushed.oid, "first"),
        (first, "initial commit"),
    ]


def test_a_commit_on_top_of_an_old_one_is_refused_and_changes_nothing(api, pushed):
    newer = api.upload_file(repo_id=REPO, path_or_fileobj=b"1", path_in_repo="a.txt")
    with raises(412) as caught:
        api.upload_file(repo_id=REPO, path_or_fileobj=b"2", path_in_repo="a.txt", parent_commit=pushed.oid)

    assert f"ends at {newer.oid}, not at {pushed.oid}" in str(caught.value)
    assert api.model_info(REPO).sha == newer.oid
    assert api.upload_file(repo_id=REPO, path_or_fileobj=b"2", path_in_repo="a.txt", parent_commit=newer.oid[:8]).oid


@of_names
def test_tags_and_branches_are_made_moved_and_deleted(api, pushed):
    api.create_tag(REPO, tag="v1.0", tag_message="first")
    with raises(409):
        api.create_tag(REPO, tag="v1.0")
    api.create_tag(REPO, tag="v1.0", exist_ok=True)
    api.create_branch(REPO, branch="exp/lora-r8", revision="v1.0")
    with raises(409):
        api.create_branch(REPO, branch="exp/lora-r8")
    on_branch = api.upload_file(repo_id=REPO, path_or_fileobj=b"b", path_in_repo="b.txt", revision="exp/lora-r8")
    on_main = api.upload_file(repo_id=REPO, path_or_fileobj=b"m", path_in_repo="m.txt")

    refs = api.list_repo_refs(REPO)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {
        "main": on_main.oid,
        "exp/lora-r8": on_branch.oid,
    }
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1.0": pushed.oid}
    assert [c.commit_id for c in api.list_repo_commits(REPO, revision="exp/lora-r8")][:2] == [on_branch.oid, pushed.oid]
    assert [c.commit_id for c in api.list_repo_commits(REPO)][:-1] == [on_main.oid, pushed.oid]

    api.delete_branch(REPO, branch="exp/lora-r8")
    api.delete_tag(REPO, tag="v1.0")
    refs = api.list_repo_refs(REPO)
    assert ([branch.name for branch in refs.branches], refs.tags) == (["main"], [])
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1.0")


def test_ignored_files_and_secrets_are_not_uploaded_by_default(api, tmp_path):
    up, ignored = tmp_path / "up", ("prod.key", "a/x.log", ".env", "a/.env.local", "id_ed25519", "a/ca.pem")
    for name in (*ignored, "model.txt", "a/kept.log", ".env.example"):
        (up / name).parent.mkdir(parents=True, exist_ok=True)
        (up / name).write_text("x")
    (up / ".gitignore").write_text("*.log\n!kept.log\n")
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=up)
    kept = {".gitignore", "model.txt", "a/kept.log", ".env.example"}
    assert {*api.list_repo_files(REPO)} - {".gitattributes"} == kept
    (up / ".gitignore").unlink()  # that of the repository is followed then
    api.upload_folder(repo_id=REPO, folder_path=up)
    assert {*api.list_repo_files(REPO)} - {".gitattributes"} == kept
    (up / ".gitignore").write_text("!ca.pem\n")
    api.upload_folder(repo_id=REPO, folder_path=up)
    api.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo=".env")
    assert {*api.list_repo_files(REPO)} - {".gitattributes"} == {*kept, "a/ca.pem", "a/x.log", ".env"}
    (up / ".gitignore").write_text("x\n" * 1001)
    with raises(400):
        api.upload_folder(repo_id=REPO, folder_path=up)


@of_names
def test_tags_are_called_as_in_git_and_a_number_is_one_unless_it_is_that_of_another_version(api, pushed):
    second = api.upload_file(repo_id=REPO, path_or_fileobj=b"m", path_in_repo="m.txt")
    for tag in ("release/1.0", "ner@1.0.0", "model#prod", "1.0+cpu"):
        api.create_tag(REPO, tag=tag, revision=pushed.oid)
        assert api.model_info(REPO, revision=tag).sha == pushed.oid
    api.create_tag(REPO, tag="v1", revision=pushed.oid)
    for tag in ("v1", "V2"):
        with raises(400) as caught:
            api.create_tag(REPO, tag=tag, revision=second.oid)
        assert f"{tag} is the number of another version" in str(caught.value)
    api.create_tag(REPO, tag="v3", revision=pushed.oid)
    third = api.upload_file(repo_id=REPO, path_or_fileobj=b"n", path_in_repo="n.txt")
    commits = [api.model_info(REPO, revision=number).sha for number in ("v1", "v2", "v3", "v4")]
    assert commits == [pushed.oid, second.oid, pushed.oid, third.oid]
    with raises(400):
        api.delete_tag(REPO, tag="v4")
    api.delete_tag(REPO, tag="v3")


def test_a_commit_that_brings_back_old_content_is_the_old_commit_and_the_end_of_its_branch(api, pushed):
    api.upload_file(repo_id=REPO, path_or_fileobj=b"1", path_in_repo="a.txt")
    back = api.delete_file("a.txt", repo_id=REPO)

    assert back.oid == pushed.oid
    assert api.model_info(REPO).sha == pushed.oid
    after = api.upload_file(repo_id=REPO, path_or_fileobj=b"2", path_in_repo="a.txt")
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)][:-1] == [after.oid, pushed.oid]


@of_names
def test_a_new_repository_has_a_first_commit_of_which_branches_and_tags_can_be_made(api):
    api.create_repo(REPO)
    first = api.model_info(REPO).sha
    assert [(it.commit_id, it.title, it.authors) for it in api.list_repo_commits(REPO)] == [
        (first, "initial commit", [api.whoami()["name"]])
    ]
    assert [(it.name, it.target_commit) for it in api.list_repo_refs(REPO).branches] == [("main", first)]
    assert api.revision_exists(REPO, first)

    api.create_branch(REPO, branch="exp", revision=first)
    with raises(409):
        api.create_branch(REPO, branch="exp")
    api.create_branch(REPO, branch="exp", exist_ok=True)
    with pytest.raises(RevisionNotFoundError):
        api.create_branch(REPO, branch="more", revision="0" * 40)
    api.create_tag(REPO, tag="start")
    made = api.upload_file(repo_id=REPO, path_or_fileobj=b"b", path_in_repo="b.txt", revision="exp")

    refs = api.list_repo_refs(REPO)
    assert {it.name: it.target_commit for it in refs.branches} == {"main": first, "exp": made.oid}
    assert {it.name: it.target_commit for it in refs.tags} == {"start": first}
    assert [it.commit_id for it in api.list_repo_commits(REPO, revision="exp")] == [made.oid, first]
    assert api.list_repo_files(REPO) == [ATTRIBUTES]
    assert api.list_repo_files(REPO, revision="exp") == [ATTRIBUTES, "b.txt"]


@of_names
def test_a_missing_branch_is_refused_in_a_new_repository_too(api):
    api.create_repo(REPO)
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(repo_id=REPO, path_or_fileobj=b"b", path_in_repo="b.txt", revision="exp")


@of_names
def test_a_new_repository_is_squashed_to_its_first_commit(api):
    api.create_repo(REPO)
    api.super_squash_history(REPO, commit_message="Begun")
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["Begun"]


def test_a_push_into_a_new_repository_is_its_first_version(api, served):
    api.create_repo(REPO)
    first = api.model_info(REPO).sha
    api.upload_file(repo_id=REPO, path_or_fileobj=b"b", path_in_repo="b.txt", parent_commit=first)
    assert [*served.registry.document(REPO).versions] == ["v1"]
    assert [
        entry.path for entry in served.registry.manifest(served.registry.document(REPO).versions["v1"].digest).files
    ] == ["b.txt"]
    assert api.list_repo_files(REPO, revision=first) == [ATTRIBUTES]
    head = api.model_info(REPO).sha
    api.create_branch(REPO, branch="exp", revision=first)
    assert {it.name: it.target_commit for it in api.list_repo_refs(REPO).branches} == {"main": head, "exp": first}
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == [head, first]


@of_names
def test_a_new_repository_has_the_attributes_of_large_files_alone(api, tmp_path):
    url = api.create_repo(REPO)

    assert (url.repo_id, api.repo_exists(REPO), api.list_repo_files(REPO)) == (REPO, True, [ATTRIBUTES])
    assert len(api.model_info(REPO).sha) == 40
    assert snapshot_download(REPO, endpoint=api.endpoint, token=api.token, cache_dir=tmp_path)
    assert [model.id for model in api.list_models()] == [REPO]


@of_names
def test_the_attributes_of_large_files_can_be_replaced_deleted_and_restored(api, served, tmp_path):
    api.create_repo(REPO)
    default = Path(
        hf_hub_download(REPO, ATTRIBUTES, endpoint=api.endpoint, token=api.token, cache_dir=tmp_path)
    ).read_bytes()
    api.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="model.bin")
    assert api.get_paths_info(REPO, ["model.bin"])[0].lfs
    api.upload_file(repo_id=REPO, path_or_fileobj=b"*.txt filter=lfs\n", path_in_repo=ATTRIBUTES)
    assert api.get_paths_info(REPO, ["model.bin"])[0].lfs is None
    api.delete_file(ATTRIBUTES, repo_id=REPO)
    assert api.list_repo_files(REPO) == ["model.bin"]
    api.upload_file(repo_id=REPO, path_or_fileobj=default, path_in_repo=ATTRIBUTES)
    assert api.list_repo_files(REPO) == [ATTRIBUTES, "model.bin"]
    assert [*served.registry.document(REPO).versions] == ["v1", "v2"]


@of_names
def test_a_repository_is_created_once(api):
    api.create_repo(REPO)
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    with raises(409):
        api.create_repo(REPO)
    assert api.create_repo("acme/SST2", exist_ok=True).repo_id == REPO
    with raises(409) as caught:
        api.create_repo("acme/SST2")
    assert f"{REPO} exists already" in str(caught.value)
    assert [model.id for model in api.list_models()] == [REPO]


def test_files_are_described_with_their_digests(api, pushed, folder):
    info = api.model_info(REPO, files_metadata=True)
    weights = next(file for file in info.siblings if file.rfilename == "adapter_model.safetensors")
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()

    assert (weights.size, weights.lfs.sha256, weights.lfs.size) == (len(WEIGHTS), sha256, len(WEIGHTS))
    assert (info.card_data.base_model, info.library_name, info.author) == ("t5-base", "peft", "acme")
    assert {"sst2", "peft", "base_model:t5-base", "base_model:adapter:t5-base"} <= set(info.tags)
    assert sorted(file.rfilename for file in info.siblings) == sorted([ATTRIBUTES, *content_of(folder)])
    config = next(file for file in info.siblings if file.rfilename == "adapter_config.json")
    data = (folder / "adapter_config.json").read_bytes()
    assert (config.lfs, config.blob_id) == (None, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


@of_names
def test_trees_are_listed_folder_by_folder_or_whole(api, pushed):
    top = {item.path: type(item).__name__ for item in api.list_repo_tree(REPO)}
    assert top["sub dir"] == "RepoFolder"
    assert len(top) == 6
    assert [item.path for item in api.list_repo_tree(REPO, "sub dir")] == ["sub dir/größe #1%.txt"]
    whole = [item.path for item in api.list_repo_tree(REPO, recursive=True)]
    assert {"sub dir", "sub dir/größe #1%.txt", "README.md"} <= set(whole)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))


@of_names
def test_an_expanded_tree_names_the_last_commit_of_each_file(api, pushed):
    newer = api.upload_file(repo_id=REPO, path_or_fileobj=b"1", path_in_repo="sub dir/a.txt", commit_message="newer")
    last = {item.path: item.last_commit for item in api.list_repo_tree(REPO, recursive=True, expand=True)}

    assert (last["sub dir/a.txt"].oid, last["sub dir"].oid) == (newer.oid, newer.oid)
    assert (last["README.md"].oid, last["README.md"].title) == (pushed.oid, "first")


@of_names
def test_single_paths_are_described_and_unknown_ones_left_out(api, pushed):
    found = api.get_paths_info(REPO, ["sub dir", "empty.txt", "nothing"])

    assert [(type(item).__name__, item.path) for item in found] == [
        ("RepoFolder", "sub dir"),
        ("RepoFile", "empty.txt"),
    ]
    assert (api.file_exists(REPO, "empty.txt"), api.file_exists(REPO, "nothing")) == (True, False)
    assert (api.revision_exists(REPO, "main"), api.revision_exists(REPO, "zzz")) == (True, False)


def test_downloads_by_any_revision_are_the_same(api, pushed, tmp_path):
    api.create_tag(REPO, tag="best")
    for number, revision in enumerate(("main", "best", "v1", pushed.oid, pushed.oid[:10], "refs/heads/main")):
        cache = tmp_path / str(number)
        path = hf_hub_download(
            REPO,
            "adapter_model.safetensors",
            revision=revision,
            endpoint=api.endpoint,
            token=api.token,
            cache_dir=cache,
        )
        assert Path(path).read_bytes() == WEIGHTS
        assert Path(path).readlink().name == hashlib.sha256(WEIGHTS).hexdigest()


@of_names
def test_a_missing_key_has_its_own_error(api, pushed, tmp_path):
    where = {"endpoint": api.endpoint, "token": api.token, "cache_dir": tmp_path / "cache"}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "nothing.bin", **where)
    assert list((tmp_path / "cache").rglob(".no_exist/*/nothing.bin"))
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "README.md", revision="nothing", **where)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("acme/nothing", "README.md", **where)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("nothing", "README.md", **where)


def test_the_client_can_check_its_copy_against_the_digests(api, pushed, tmp_path):
    path = snapshot_download(REPO, endpoint=api.endpoint, token=api.token, local_dir=tmp_path / "copy")
    assert api.verify_repo_checksums(REPO, local_dir=path).checked_count == 6
    (tmp_path / "copy" / "README.md").write_text("other")
    assert len(api.verify_repo_checksums(REPO, local_dir=path).mismatches) == 1


@of_names
def test_repositories_move_become_private_and_go(api, served, user, pushed):
    stranger = user(served, "read", "beta")
    assert stranger.model_info(REPO).sha == pushed.oid

    api.update_repo_settings(REPO, private=True)
    assert (api.model_info(REPO).private, stranger.repo_exists(REPO), list(stranger.list_models())) == (True, False, [])
    api.move_repo(REPO, "acme/moved")
    assert (api.model_info("acme/moved").sha, api.model_info("acme/moved").private) == (pushed.oid, True)
    assert (stranger.repo_exists("acme/moved"), stranger.repo_exists(REPO)) == (False, False)
    assert api.model_info(REPO).id == "acme/moved"  # the old name leads to the new one
    assert {move.author for move in served.registry.document("acme/moved").log} == {api.whoami()["name"]}

    api.delete_repo("acme/moved")
    assert not api.repo_exists("acme/moved")
    api.delete_repo("acme/moved", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("acme/moved")
    assert api.create_repo("acme/moved").repo_id == "acme/moved"
    assert api.list_repo_files("acme/moved") == [ATTRIBUTES]


@of_names
def test_squashing_a_branch_keeps_tagged_versions(api, pushed):
    commits = [
        api.upload_file(repo_id=REPO, path_or_fileobj=str(n).encode(), path_in_repo="n.txt").oid for n in range(3)
    ]
    api.create_tag(REPO, tag="kept", revision=commits[0])
    api.super_squash_history(REPO)

    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == [commits[2]]
    assert api.upload_file(repo_id=REPO, path_or_fileobj=b"4", path_in_repo="n.txt").oid
    assert len(api.list_repo_commits(REPO)) == 2
    assert api.model_info(REPO, revision="kept").sha == commits[0]
    assert not api.revision_exists(REPO, commits[1])


@of_names
def test_squashing_a_branch_leaves_the_history_of_others_and_keeps_its_message(api, pushed):
    def add(number, branch="main"):
        return api.upload_file(
            repo_id=REPO, path_or_fileobj=str(number).encode(), path_in_repo="n.txt", revision=branch
        ).oid

    shared = add(0)
    api.create_branch(REPO, branch="stable")
    own = [add(number) for number in (1, 2)]
    add(3, "stable")
    before = [commit.commit_id for commit in api.list_repo_commits(REPO, revision="stable")]
    api.super_squash_history(REPO, commit_message="Release 1")

    assert [commit.commit_id for commit in api.list_repo_commits(REPO, revision="stable")] == before
    assert api.list_repo_commits(REPO)[0].title == "Release 1"
    assert [api.revision_exists(REPO, commit) for commit in (shared, *own)] == [True, False, True]


@of_names
def test_a_repository_is_found_in_any_upper_and_lower_case(api, pushed):
    other = REPO.upper().replace("ACME", "Acme")
    assert api.model_info(other).id == REPO
    assert api.upload_file(repo_id="acme/SST2", path_or_fileobj=b"2", path_in_repo="n.txt").oid != pushed.oid
    api.create_repo("acme/SST2", exist_ok=True)
    with raises(409):
        api.create_repo("acme/SST2")
    assert api.list_repo_commits(other)[1].commit_id == pushed.oid
    api.delete_repo("acme/SST2")
    assert not api.repo_exists(REPO)


@of_names
def test_a_reused_old_name_does_not_lead_to_the_renamed_delta(api, pushed, served):
    api.move_repo(REPO, "acme/renamed")
    with raises(400):
        api.delete_repo(REPO)
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert (api.list_repo_files(REPO), api.list_repo_commits("acme/renamed")[0].commit_id) == ([ATTRIBUTES], pushed.oid)
    api.upload_file(repo_id=REPO, path_or_fileobj=b"new", path_in_repo="n.txt")

    assert (api.list_repo_files(REPO), len(api.list_repo_files("acme/renamed"))) == ([ATTRIBUTES, "n.txt"], 6)
    assert list(served.registry.document(REPO).versions) == ["v2"], "a number is never given again"
    api.delete_repo(REPO)
    assert api.model_info("acme/renamed").sha == pushed.oid


def test_a_file_system_reads_ranges_and_writes(api, pushed):
    files = HfFileSystem(endpoint=api.endpoint, token=api.token, skip_instance_cache=True)

    assert len(files.ls(REPO, detail=False)) == 6
    assert files.cat_file(f"{REPO}/adapter_model.safetensors", start=100_000, end=300_000) == WEIGHTS[100_000:300_000]
    files.pipe_file(f"{REPO}/via-fs.txt", b"written")
    assert files.read_text(f"{REPO}/via-fs.txt") == "written"
    files.rm(f"{REPO}/via-fs.txt")
    assert not api.file_exists(REPO, "via-fs.txt")


def test_the_header_of_weights_is_read_by_a_range(api, tmp_path):
    import numpy as np
    from safetensors.numpy import save

    api.create_repo(REPO)
    data = save({"w": np.zeros((200, 200), np.float32)})
    api.upload_file(repo_id=REPO, path_or_fileobj=data, path_in_repo="model.safetensors")

    found = api.get_safetensors_metadata(REPO).files_metadata["model.safetensors"].tensors["w"]
    assert (found.shape, found.dtype) == ([200, 200], "F32")
    assert api.model_info(REPO).safetensors.parameters == {"F32": 40_000}
