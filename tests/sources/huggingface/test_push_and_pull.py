"""Deltas go to a hub and come back, whoever made the repo."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltahub.checkpoint import checkpoint
from deltahub.errors import ConfigError, ConflictError, NotFoundError, NoVersionError
from deltahub.reference import Digest, Reference
from tests.checkpoints import content_of

pytestmark = [
    pytest.mark.slow,  # a hub for each test
    pytest.mark.parametrize("server", ["plain", "own"], indirect=True),
]

FILES = {checkpoint.BACKBONE, checkpoint.CARD, checkpoint.CONFIG, checkpoint.WEIGHTS}


def delta_files(folder):
    return {name: data for name, data in content_of(folder).items() if name in FILES}


def api(hub):
    """huggingface_hub's own client, as this user."""
    return hub.source("hf").calls.api


def ref(repo, version=None):
    return Reference.parse(f"hf:{repo}{f'@{version}' if version else ''}")


def test_a_delta_comes_back_to_the_last_byte_with_the_digest_that_it_has_everywhere(user, repo, checkpoint_folder):
    hub, other = user(), user()
    pushed = hub.push(checkpoint_folder, f"hf:{repo}", tags=["task=sst2", "best"], aliases=["champion"])
    pulled = other.pull(ref(repo, "champion"))

    assert pushed.digest == pulled.digest == hub.push(checkpoint_folder, f"local:{repo}").digest
    assert delta_files(pulled.folder) == content_of(checkpoint_folder)
    assert (pushed.new, pushed.tags) == (True, ("best", "task=sst2"))


def test_the_exact_reference_is_the_commit(hub, repo, checkpoint_folder):
    pushed = hub.push(checkpoint_folder, f"hf:{repo}")

    commit = api(hub).repo_info(repo).sha
    assert str(pushed.reference) == f"hf:{repo}@{commit}"
    for version in (None, "latest", "main", "v1", commit, pushed.digest, pushed.digest[:20]):
        assert hub.resolve(ref(repo, version)).reference == pushed.reference


def test_the_manifest_in_the_repo_has_the_digest_of_the_delta(hub, repo, checkpoint_folder):
    pushed = hub.push(checkpoint_folder, f"hf:{repo}", tags=["best"])

    path = api(hub).hf_hub_download(repo, "manifest.json")
    with Path(path).open("rb") as file:
        assert Digest.of(file.read()) == pushed.digest


def test_a_push_is_one_commit_on_the_current_one(hub, repo, new_checkpoint):
    api(hub).create_repo(repo)
    api(hub).upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=repo)
    before = len(api(hub).list_repo_commits(repo))

    hub.push(new_checkpoint(), f"hf:{repo}", message="two epochs\n\nand a half")

    commits = api(hub).list_repo_commits(repo)
    assert len(commits) == before + 1
    assert commits[0].title == "two epochs"
    assert "notes.txt" in api(hub).list_repo_files(repo)


def test_the_same_content_again_makes_no_commit_and_no_version(hub, repo, new_checkpoint):
    first = hub.push(new_checkpoint(), f"hf:{repo}", tags=["task=sst2"], aliases=["champion"])
    commits = api(hub).list_repo_commits(repo)
    second = hub.push(new_checkpoint(), f"hf:{repo}", tags=["task=sst2"], aliases=["champion"])
    third = hub.push(new_checkpoint(), f"hf:{repo}")

    assert [it.new for it in (first, second, third)] == [True, False, False]
    assert first.reference == second.reference == third.reference
    assert second.tags == third.tags == first.tags
    assert len(api(hub).list_repo_commits(repo)) == len(commits)
    assert list(hub.document(ref(repo))[1].versions) == ["v1"]


def test_content_of_an_older_version_is_that_version_still(hub, repo, new_checkpoint):
    first = hub.push(new_checkpoint(), f"hf:{repo}")
    second = hub.push(new_checkpoint(value=0.7), f"hf:{repo}")
    again = hub.push(new_checkpoint(), f"hf:{repo}", aliases=["stable"])

    assert (again.reference, again.new) == (first.reference, False)
    assert hub.resolve(ref(repo)).reference == second.reference
    assert hub.resolve(ref(repo, "stable")).reference == first.reference


def test_a_file_that_the_new_version_lacks_leaves_the_repo_and_those_of_others_stay(hub, repo, new_checkpoint):
    folder = new_checkpoint()
    hub.push(folder, f"hf:{repo}")
    other = new_checkpoint(value=0.7)
    (other / "README.md").unlink()
    api(hub).upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=repo)
    hub.push(other, f"hf:{repo}")

    assert {"notes.txt", *content_of(other)} <= set(api(hub).list_repo_files(repo))
    assert delta_files(hub.pull(ref(repo)).folder) == content_of(other)


def test_an_alias_moves_and_the_versions_stay(hub, repo, new_checkpoint):
    first = hub.push(new_checkpoint(), f"hf:{repo}", aliases=["champion"])
    second = hub.push(new_checkpoint(value=0.7), f"hf:{repo}", aliases=["champion"])

    assert hub.resolve(ref(repo, "champion")).reference == second.reference
    assert hub.resolve(ref(repo, "v1")).reference == first.reference
    assert hub.resolve(ref(repo, "v2")).reference == second.reference


def test_a_push_that_expects_an_alias_elsewhere_commits_nothing(hub, repo, new_checkpoint):
    hub.push(new_checkpoint(), f"hf:{repo}", aliases=["champion"])
    commits = len(api(hub).list_repo_commits(repo))
    for expected, said in ((None, "no entry"), ("v7", "v7")):
        with pytest.raises(ConflictError, match=f"'champion' of hf:{repo}: expected {said}, found v1"):
            hub.push(new_checkpoint(value=0.7), f"hf:{repo}", aliases=["champion"], expect={"champion": expected})
    assert len(api(hub).list_repo_commits(repo)) == commits
    assert hub.push(new_checkpoint(value=0.7), f"hf:{repo}", aliases=["champion"], expect={"champion": "v1"}).new


def test_a_branch_is_no_alias(hub, repo, checkpoint_folder):
    hub.push(checkpoint_folder, f"hf:{repo}")
    api(hub).create_branch(repo, branch="trial")
    with pytest.raises(ConfigError, match="'trial' is a branch"):
        hub.push(checkpoint_folder, f"hf:{repo}", aliases=["trial"])


def test_a_version_that_is_not_there_names_those_that_are(hub, repo, checkpoint_folder):
    hub.push(checkpoint_folder, f"hf:{repo}", aliases=["champion"])
    with pytest.raises(NoVersionError, match=r"branches and tags .*champion.* The nearest names are: champion"):
        hub.pull(ref(repo, "champoin"))
    with pytest.raises(NoVersionError, match=f"@sha256:{'0' * 12} was not found"):
        hub.pull(ref(repo, "sha256:" + "0" * 12))


def test_a_private_repo_is_not_there_for_others(user, repo, checkpoint_folder):
    hub, stranger = user(), user(token=False)
    hub.push(checkpoint_folder, f"hf:{repo}", private=True)
    assert hub.pull(ref(repo)).digest
    with pytest.raises(NotFoundError, match="asked without a token: if it is private, log in with `hf auth login`"):
        stranger.pull(ref(repo))


def test_two_hubs_with_tokens_of_their_own_are_asked_in_one_process(user, repo, checkpoint_folder, monkeypatch, proxy):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    named, general = user(), user(endpoint=None, token=None)
    named.push(checkpoint_folder, f"hf:{repo}")
    assert general.source("hf").place == "hf (http://127.0.0.1:9)"

    monkeypatch.setenv("HF_ENDPOINT", proxy.url)
    monkeypatch.setenv("HF_TOKEN", named.source("hf").calls.token)
    assert general.pull(ref(repo)).digest == named.pull(ref(repo)).digest


def test_a_name_that_goes_back_to_an_older_commit_is_a_warning(hub, user, repo, new_checkpoint, caplog):
    first, second = new_checkpoint(), new_checkpoint(value=0.7)
    other = user()
    old = hub.push(first, f"hf:{repo}", aliases=["champion"]).reference
    other.pull(ref(repo, "champion"))
    new = hub.push(second, f"hf:{repo}", aliases=["champion"]).reference
    other.pull(ref(repo, "champion"))
    assert not caplog.records

    api(hub).delete_tag(repo, tag="champion")
    api(hub).create_tag(repo, tag="champion", revision=old.version)
    assert other.pull(ref(repo, "champion")).reference == old
    assert [record.getMessage() for record in caplog.records if record.name == "deltahub"] == [
        f"hf:{repo}@champion is {old} now; it was {new} when it was last pulled. It went back."
    ]
