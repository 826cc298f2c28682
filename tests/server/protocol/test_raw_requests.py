"""Requests that no client sends on its own, and the words in which they are answered."""

from __future__ import annotations

import base64
import json

import pytest
import requests

from deltahub.server.records import Records

pytestmark = pytest.mark.slow  # a hub for each request

REPO = "acme/sst2"


@pytest.fixture
def ask(hub, api):
    """Sends a request with a token that may write."""
    api.create_repo(REPO)
    headers = {"Authorization": f"Bearer {hub.token()}"}

    def send(method: str, path: str, **options: object) -> requests.Response:
        options.setdefault("headers", headers)
        return requests.request(method, f"{hub.url}{path}", timeout=30, allow_redirects=False, **options)

    return send


@pytest.fixture
def commit(ask):
    def send(*lines: tuple[str, dict], branch: str = "main", repo: str = REPO, **header: object) -> requests.Response:
        listed = [("header", {"summary": "by hand", **header}), *lines]
        body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in listed)
        return ask("POST", f"/api/models/{repo}/commit/{branch}", data=body.encode())

    return send


def file(path: str, data: bytes = b"1") -> tuple[str, dict]:
    return "file", {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"}


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "/",
            "/etc/passwd",
            "../x",
            "a/../x",
            "a/..",
            "./a",
            "a//b",
            "a\\b",
            "a\nb",
            "a\x00",
            ".git/config",
            "a/.GIT/x",
        ),
        *(".deltahub-manifest.json", "a/" * 40 + "b", "x" * 300, "\ud800"),
    ],
)
def test_no_file_gets_a_path_that_leads_elsewhere(commit, api, path):
    answer = commit(file(path))

    status = 400 if path == "\ud800" else 422  # half of a surrogate pair is not JSON
    assert (answer.status_code, "X-Error-Message" in answer.headers) == (status, True)
    assert api.list_repo_files(REPO) == [".gitattributes"]


def test_nothing_is_a_file_and_a_folder_at_once(commit):
    answer = commit(file("a"), file("a/b"))
    assert (answer.status_code, "at once" in answer.json()["error"]) == (400, True)


def test_a_missing_path_cannot_be_deleted(commit):
    for key in ("deletedFile", "deletedFolder"):
        answer = commit((key, {"path": "nothing"}))
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "EntryNotFound")
        assert "with this name doesn't exist" in answer.json()["error"]


def test_a_commit_of_which_one_part_is_refused_changes_nothing(commit, api):
    assert commit(file("good"), file("../bad")).status_code == 422
    assert commit(file("good"), ("deletedFile", {"path": "nothing"})).status_code == 404
    assert api.list_repo_files(REPO) == [".gitattributes"]


def test_a_commit_goes_to_a_branch_that_is_there(commit, ask):
    assert commit(file("a")).status_code == 200
    answer = commit(file("b"), branch="nothing")
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RevisionNotFound")
    assert commit(file("b"), repo="acme/nothing").headers["X-Error-Code"] == "RepoNotFound"
    refused = ask("POST", f"/api/models/{REPO}/commit/main?create_pr=1", data=b"")
    assert (refused.status_code, "no pull requests" in refused.json()["error"]) == (501, True)


@pytest.mark.parametrize("parent", ["xyz", "12", 7, "0" * 41])
def test_a_parent_that_is_no_commit_is_refused(commit, parent):
    assert commit(file("a"), parentCommit=parent).status_code == 400


@pytest.mark.parametrize("tag", ["V2", "main", "latest", "sha256", "a//b", "refs/b", "", "a" * 200, "\u00e9"])
def test_a_tag_that_means_something_else_is_refused_with_the_reason(commit, ask, tag):
    commit(file("a"))
    answer = ask("POST", f"/api/models/{REPO}/tag/main", json={"tag": tag})
    assert (answer.status_code, len(answer.json()["error"]) > 20) == (400, True)


def test_the_main_branch_stays(commit, ask):
    commit(file("a"))
    assert ask("DELETE", f"/api/models/{REPO}/branch/main").status_code == 403
    assert ask("POST", f"/api/models/{REPO}/branch/main").status_code == 409


def test_data_sets_and_spaces_are_refused_in_a_sentence(ask):
    for kind in ("dataset", "space"):
        answer = ask("POST", "/api/repos/create", json={"name": "x", "organization": "acme", "type": kind})
        assert (answer.status_code, "of the type model" in answer.json()["error"]) == (501, True)
        for path in (f"/api/{kind}s/acme/x", f"/{kind}s/acme/x/resolve/main/a", f"/api/{kind}s"):
            answer = ask("GET", path)
            assert (answer.status_code, "models only" in answer.json()["error"]) == (501, True)


def test_the_error_for_a_client_with_xet_names_the_setting(ask):
    answer = ask("GET", f"/api/models/{REPO}/xet-write-token/main")
    assert (answer.status_code, "HF_HUB_DISABLE_XET=1" in answer.headers["X-Error-Message"]) == (404, True)


def test_a_card_that_cannot_be_read_is_refused_before_it_is_pushed(ask):
    good = ask("POST", "/api/validate-yaml", json={"content": "---\ntags: [a]\n---\n", "repoType": "model"})
    assert (good.status_code, good.json()) == (200, {"errors": [], "warnings": []})
    for bad in (
        "---\n{[\n---\n",
        "---\n- a\n---\n",
        "---\na: &x [1]\nb: *x\n---\n",
        "---\na: !!python/name:os.system\n---\n",
    ):
        answer = ask("POST", "/api/validate-yaml", json={"content": bad})
        assert (answer.status_code, "cannot be read" in answer.json()["errors"][0]["message"]) == (400, True)


def test_a_card_that_cannot_be_read_hides_nothing_else(commit, ask):
    commit(file("README.md", b"---\n{[\n---\n"))
    answer = ask("GET", f"/api/models/{REPO}")
    assert (answer.status_code, answer.json()["cardData"]) == (200, {})


def test_answers_to_strangers_do_not_reveal_private_repositories(hub, api, ask):
    api.create_repo("acme/secret", private=True)
    api.upload_file(repo_id="acme/secret", path_or_fileobj=b"1", path_in_repo="a")
    stranger = {"Authorization": f"Bearer {hub.token('write', 'beta')}"}
    paths = ["", "/refs", "/tree/main", "/commits/main", "/auth-check", "/revision/main"]
    for headers, status in ((stranger, 404), ({}, 401)):
        for path in [f"/api/models/acme/{{}}{path}" for path in paths] + ["/acme/{}/resolve/main/a"]:
            answers = [ask("GET", path.format(name), headers=headers) for name in ("secret", "nothing")]
            assert [answer.status_code for answer in answers] == [status, status]
            assert {answer.headers["X-Error-Code"] for answer in answers} == {"RepoNotFound"}
            assert answers[0].text.replace("secret", "nothing") == answers[1].text


def test_rights_are_asked_for(hub, ask):
    reader = {"Authorization": f"Bearer {hub.token('read')}"}
    assert ask("GET", f"/api/models/{REPO}/auth-check", headers=reader).status_code == 200
    assert ask("GET", f"/api/models/{REPO}/auth-check/write", headers=reader).status_code == 403
    assert ask("GET", f"/api/models/{REPO}/auth-check/write").status_code == 200
    assert ask("GET", f"/api/models/{REPO}/auth-check/other").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/repos/create", {"name": "new", "organization": "acme"}),
        ("DELETE", "/api/repos/delete", {"name": "sst2", "organization": "acme"}),
        ("POST", "/api/repos/move", {"fromRepo": REPO, "toRepo": "acme/new"}),
        ("PUT", f"/api/models/{REPO}/settings", {"visibility": "private"}),
        ("POST", f"/api/models/{REPO}/tag/main", {"tag": "t"}),
        ("DELETE", f"/api/models/{REPO}/tag/t", None),
        ("POST", f"/api/models/{REPO}/branch/b", None),
        ("DELETE", f"/api/models/{REPO}/branch/b", None),
        ("POST", f"/api/models/{REPO}/super-squash/main", None),
        ("POST", f"/api/models/{REPO}/preupload/main", {"files": []}),
        ("POST", f"/api/models/{REPO}/commit/main", {"key": "header", "value": {"summary": "x"}}),
        ("POST", f"/{REPO}.git/info/lfs/objects/batch", {"operation": "upload", "objects": []}),
        ("POST", f"/{REPO}.git/info/lfs/verify", {"oid": "0" * 64, "size": 1}),
    ],
)
def test_every_change_needs_the_right_to_change(hub, ask, method, path, body):
    for scope, namespaces, status in (("read", (), 403), ("write", ("beta",), 403)):
        headers = {"Authorization": f"Bearer {hub.token(scope, *namespaces)}"}
        assert ask(method, path, json=body, headers=headers).status_code == status
    assert ask(method, path, json=body, headers={}).status_code == 401


def test_a_repository_is_not_moved_to_where_the_caller_may_not_write(hub, ask):
    headers = {"Authorization": f"Bearer {hub.token('write', 'acme')}"}
    answer = ask("POST", "/api/repos/move", json={"fromRepo": REPO, "toRepo": "beta/new"}, headers=headers)
    assert answer.status_code == 403


def test_a_name_that_is_taken_is_not_moved_to(api, ask):
    api.create_repo("acme/other")
    assert ask("POST", "/api/repos/move", json={"fromRepo": REPO, "toRepo": "acme/other"}).status_code == 409


def test_a_move_that_was_killed_before_the_delta_was_renamed_can_be_repeated(hub, ask, commit):
    assert commit(file("a.txt")).status_code == 200
    records = Records(hub.registry.store)
    record = records.find(REPO)
    records.change("acme/new", lambda _: record)

    assert ask("POST", "/api/repos/move", json={"fromRepo": REPO, "toRepo": "acme/new"}).status_code == 200
    assert hub.registry.document(REPO).name == "acme/new"
    assert (records.find("acme/new"), records.find(REPO)) == (record, record)


def test_unsupported_settings_are_refused(ask):
    assert ask("PUT", f"/api/models/{REPO}/settings", json={"gated": "now"}).status_code == 400
    assert ask("PUT", f"/api/models/{REPO}/settings", json={"visibility": "internal"}).status_code == 400
    assert ask("PUT", f"/api/models/{REPO}/settings", json={"gated": False}).json() == {
        "private": False,
        "gated": False,
    }


@pytest.mark.parametrize(
    "body", [b"[]", b"nonsense", b'{"name": 7}', b'{"name": "a", "organization": []}', b"\xff", b"NaN"]
)
def test_bodies_that_make_no_sense_are_refused(ask, body):
    assert ask("POST", "/api/repos/create", data=body).status_code == 400


def test_addresses_that_are_no_text_are_refused(ask):
    for path in (
        "/api/models/acme/%FF",
        f"/{REPO}/resolve/main/a%00b",
        f"/{REPO}/resolve/%0A/a",
        "/api/models/acme/x%0D%0Ay",
    ):
        assert ask("GET", path).status_code == 400
