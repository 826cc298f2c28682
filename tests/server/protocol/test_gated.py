"""Gated repositories: their description is open, their files are for those on a list."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from deltahub.server.records import Records

REPO = "acme/ner"


@pytest.fixture
def gated(api) -> str:
    """A gated repository with one file of each kind."""
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="small.txt", repo_id=REPO)
    api.upload_file(path_or_fileobj=b"y" * 2000, path_in_repo="large.npy.safetensors", repo_id=REPO)
    api.update_repo_settings(REPO, gated="manual")
    return REPO


@pytest.fixture
def ada(hub) -> dict[str, str]:
    """The headers of a user without rights in the namespace."""
    return {"Authorization": f"Bearer {hub.token('read', 'beta', name='ada')}"}


def users(requests) -> list[str]:
    return [item.username for item in requests]


def test_files_are_for_those_who_were_accepted(hub, api, gated, ada, tmp_path):
    file = {"repo_id": gated, "filename": "small.txt", "endpoint": hub.url, "token": ada["Authorization"][7:]}
    with pytest.raises(GatedRepoError, match="you are not in the authorized list"):
        hf_hub_download(**file, cache_dir=tmp_path / "1")
    ask = f"{hub.url}/{gated}/ask-access"
    assert httpx2.post(ask, headers=ada).json() == {"status": "pending"}
    assert httpx2.post(ask, headers=ada).json() == {"status": "pending"}
    assert users(api.list_pending_access_requests(gated)) == ["ada"]
    api.accept_access_request(gated, "ada")
    assert hf_hub_download(**file, cache_dir=tmp_path / "2")
    api.reject_access_request(gated, "ada", rejection_reason="no")
    with pytest.raises(GatedRepoError, match="Your request is rejected"):
        hf_hub_download(**file, cache_dir=tmp_path / "3")


@pytest.mark.parametrize("with_token", [True, False])
def test_no_route_gives_the_files_of_a_gated_repository_to_others(hub, api, gated, ada, with_token):
    commit = api.model_info(gated).sha
    oid = "0" * 64
    batch = {"operation": "download", "objects": [{"oid": oid, "size": 1}]}
    headers = ada if with_token else {}
    answers = [httpx2.post(f"{hub.url}/{gated}.git/info/lfs/objects/batch", json=batch, headers=headers)]
    paths = (
        "resolve/main/small.txt",
        "raw/main/large.npy.safetensors",
        "blob/main/small.txt",
        "layers/v1",
        "versions",
        "",
    )
    answers += [httpx2.get(f"{hub.url}/{gated}/{path}".rstrip("/"), headers=headers) for path in paths]
    for path in (f"pack/{commit}", f"manifest/{commit}"):
        answers.append(httpx2.get(f"{hub.url}/api/deltahub/{gated}/{path}", headers=headers))
    answers.append(httpx2.get(f"{hub.url}/api/models/{gated}/auth-check", headers=headers))
    assert {answer.status_code for answer in answers} == {403 if with_token else 401}
    assert httpx2.get(f"{hub.url}/api/models/{gated}", headers=headers).json()["gated"] == "manual"


def test_the_list_says_what_is_gated(api, gated):
    api.create_repo("acme/open")
    assert [model.id for model in api.list_models(gated=True)] == [gated]
    assert [model.id for model in api.list_models(gated=False)] == ["acme/open"]
    api.update_repo_settings(gated, gated=False, private=True)
    assert (api.model_info(gated).gated, api.model_info(gated).private) == (False, True)


def test_only_those_who_may_write_handle_requests(hub, user, api, gated, ada):
    httpx2.post(f"{hub.url}/{gated}/ask-access", headers=ada)
    reader = user(hub, "read")
    for call in (reader.accept_access_request, reader.grant_access, reader.cancel_access_request):
        with pytest.raises(HfHubHTTPError) as raised:
            call(gated, "ada")
        assert raised.value.response.status_code == 403
    with pytest.raises(HfHubHTTPError):
        list(reader.list_pending_access_requests(gated))
    assert httpx2.post(f"{hub.url}/{gated}/ask-access").status_code == 401
    for status, call in ((404, api.grant_access), (404, api.accept_access_request)):
        with pytest.raises(HfHubHTTPError) as raised:
            call(gated, "nobody")
        assert raised.value.response.status_code == status


def test_members_follow_a_rename_and_do_not_come_to_a_successor(hub, api, gated, ada, monkeypatch):
    api.grant_access(gated, "ada")
    api.move_repo(gated, "acme/moved")
    assert users(api.list_accepted_access_requests("acme/moved")) == ["ada"]
    api.delete_repo("acme/moved")
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2099-01-01T00:00:00Z")
    api.create_repo("acme/moved")
    api.update_repo_settings("acme/moved", gated="auto")
    assert users(api.list_accepted_access_requests("acme/moved")) == []
    assert httpx2.post(f"{hub.url}/acme/moved/ask-access", headers=ada).json() == {"status": "accepted"}
    assert Records(hub.registry.store).find("acme/moved").gated == "auto"
