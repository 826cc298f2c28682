"""Signing in: a session that stands for a token, only for reading, only on this hub's own pages."""

from __future__ import annotations

from datetime import timedelta
from http.cookies import SimpleCookie

import pytest
import requests

from deltahub.server import sessions, tokens
from deltahub.server.app import build_app
from deltahub.server.pages.browsers import COOKIE
from deltahub.server.pages.sign_in import path_on_this_hub
from deltahub.server.settings import Settings
from tests.server.pages.conftest import Pages
from tests.server.running import listening


@pytest.fixture
def secret(hub, push) -> str:
    """The name of a private delta."""
    push("acme/secret")
    hub.hide("acme/secret")
    return "/acme/secret"


def cookie_of(answer: requests.Response, name: str = COOKIE):
    return SimpleCookie(answer.headers.get("Set-Cookie", "")).get(name)


def test_private_deltas_are_visible_from_sign_in_to_sign_out(hub, secret):
    pages = hub.pages
    before = pages.get(secret)
    assert before.status_code == 401
    assert f'href="/-/sign-in?next={secret.replace("/", "%2F")}"' in before.text
    answer = pages.post("/-/sign-in", token=hub.token("read", "acme"), next=secret)
    assert (answer.status_code, answer.headers["Location"]) == (303, secret)
    assert pages.get(secret).status_code == 200
    assert "Sign out" in pages.get("/").text
    assert pages.post("/-/sign-out").status_code == 303
    assert pages.get(secret).status_code == 401


def test_the_cookie_is_for_this_hub_alone_and_for_no_script(hub):
    found = cookie_of(hub.pages.post("/-/sign-in", token=hub.token()))
    assert found["httponly"]
    assert found["samesite"].lower() == "strict"
    assert found["path"] == "/"
    assert not found["secure"]


def test_the_cookie_is_not_the_token_and_cannot_be_made_from_the_store(hub):
    token = hub.token()
    value = cookie_of(hub.pages.post("/-/sign-in", token=token)).value
    assert value not in token
    assert hub.pages.session.get(f"{hub.pages.url}/api/models", headers=bearer(value), timeout=60).status_code == 401
    documents = [data for key, _ in hub.registry.store.keys("hub/") for data in [hub.registry.store.read(key)]]
    assert not any(value.encode() in data for data in documents)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_copy_of_the_cookie_is_worth_nothing_after_the_sign_out(hub, secret, monkeypatch):
    value = cookie_of(hub.pages.post("/-/sign-in", token=hub.token("read", "acme"))).value
    monkeypatch.setattr(tokens, "LIFETIME", 0.0)
    with listening(build_app(hub.registry, Settings(rate=0))) as (host, port):
        other = Pages(f"http://{host}:{port}")
        other.session.cookies.set(COOKIE, value)
        assert other.get(secret).status_code == 200  # every process knows every session
        hub.pages.post("/-/sign-out")
        assert other.get(secret, allow_redirects=False).headers["Location"].startswith("/-/sign-in?refused=1")
    assert list(hub.registry.store.keys("hub/sessions/")) == []


def test_a_session_of_an_administrator_only_reads(hub):
    hub.pages.post("/-/sign-in", token=hub.token("admin"))
    assert hub.pages.get("/api/whoami-v2").json()["auth"]["accessToken"]["role"] == "read"


def test_a_session_ends_after_its_time_and_the_next_sign_in_removes_it(hub, secret, monkeypatch):
    monkeypatch.setattr(sessions, "LIFETIME", timedelta(seconds=-1))
    hub.pages.post("/-/sign-in", token=hub.token("read", "acme"))
    ended = [key for key, _ in hub.registry.store.keys("hub/sessions/")]
    assert hub.pages.get(secret, allow_redirects=False).headers["Location"].startswith("/-/sign-in?refused=1")
    monkeypatch.undo()
    hub.pages.post("/-/sign-in", token=hub.token("read", "acme"))
    there = [key for key, _ in hub.registry.store.keys("hub/sessions/")]
    assert (len(ended), len(there), {*ended} & {*there}) == (1, 1, set())


def test_over_https_the_cookie_is_sent_over_https_to_this_host_alone(hub):
    with listening(build_app(hub.registry, Settings(rate=0, public_url="https://hub.example"))) as (host, port):
        pages = Pages(f"http://{host}:{port}")
        answer = pages.post("/-/sign-in", origin="https://hub.example", token=hub.token())
        found = cookie_of(answer, f"__Host-{COOKIE}")
        assert (found["secure"], found["path"], found["domain"]) == (True, "/", "")
        pages.session.cookies.clear()
        assert "Sign out" not in pages.get("/", headers={"Cookie": f"{COOKIE}={found.value}"}).text
        assert "Sign out" in pages.get("/", headers={"Cookie": f"__Host-{COOKIE}={found.value}"}).text


@pytest.mark.parametrize("kind", ["unknown", "revoked"])
def test_a_token_that_is_not_valid_leads_back_to_the_form_and_to_no_session(hub, kind):
    token = "dhub_0123456789abcdef_" + "x" * 43
    if kind == "revoked":
        token = hub.token()
        hub.tokens.revoke("read-0")
    answer = hub.pages.post("/-/sign-in", token=token)
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/-/sign-in?refused=1")
    assert "Set-Cookie" not in answer.headers
    assert "no longer valid" in hub.pages.get(answer.headers["Location"]).text
    assert hub.pages.get("/").status_code == 200


def test_a_session_whose_token_was_revoked_leads_back_to_the_form_and_is_forgotten(hub, monkeypatch):
    hub.pages.post("/-/sign-in", token=hub.token())
    monkeypatch.setattr(tokens, "LIFETIME", 0.0)
    hub.tokens.revoke("read-0")
    hub.pages.get("/")  # what is known of the token may be too old from now on
    hub.pages.session.cookies.set(COOKIE, "x" * 43)
    answer = hub.pages.get("/", allow_redirects=False)
    assert answer.headers["Location"].startswith("/-/sign-in?refused=1")
    assert cookie_of(answer).value == ""


def test_guessing_tokens_in_the_form_is_stopped(registry):
    with listening(build_app(registry, Settings(rate=0, failures=2))) as (host, port):
        pages = Pages(f"http://{host}:{port}")
        token = "dhub_0123456789abcdef_" + "x" * 43
        assert [pages.post("/-/sign-in", token=token).status_code for _ in range(3)] == [303, 303, 429]


def test_an_invalid_token_is_reported_at_once(pages):
    for token in ("", "a b", "x" * 300, "dhub_\r\nSet-Cookie: a=b", "é" * 20):
        answer = pages.post("/-/sign-in", token=token)
        assert answer.status_code == 400
        assert "This is not a token of this hub" in answer.text
        assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/-/sign-in", "/-/sign-out", "/-/theme"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1"])
def test_forms_of_other_sites_are_refused(pages, path, origin):
    answer = pages.post(path, origin=origin, token="dhub_" + "a" * 30, theme="dark")
    assert answer.status_code == 403
    assert "Set-Cookie" not in answer.headers


def test_a_form_without_an_origin_is_refused(pages):
    answer = pages.session.post(f"{pages.url}/-/sign-out", timeout=60)
    assert answer.status_code == 403
    named = pages.session.post(f"{pages.url}/-/sign-out", headers={"Sec-Fetch-Site": "same-origin"}, timeout=60)
    assert named.status_code == 200


def test_the_cookie_changes_nothing(hub):
    hub.pages.post("/-/sign-in", token=hub.token("admin"))
    body = {"name": "new", "organization": "acme"}
    for origin in (hub.pages.url, "https://evil.example"):
        answer = hub.pages.session.post(
            f"{hub.pages.url}/api/repos/create", json=body, headers={"Origin": origin}, timeout=60
        )
        assert answer.status_code in (401, 403, 404, 405)
    assert hub.registry.names() == []
    assert hub.pages.get("/acme/new").status_code in (401, 404)


def test_a_token_in_a_header_goes_before_the_cookie(hub, secret):
    hub.pages.post("/-/sign-in", token=hub.token("read", "acme"))
    headers = {"Authorization": f"Bearer {hub.token('read', 'other')}"}
    assert hub.pages.get(secret, headers=headers).status_code == 404


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("/acme/ner?x=1", "/acme/ner?x=1"),
        ("", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("/a\r\nSet-Cookie: x=y", "/"),
        ("javascript:alert(1)", "/"),
        ("/a\\b", "/"),
    ],
)
def test_the_way_back_leads_to_this_hub_alone(asked, expected):
    assert path_on_this_hub(asked) == expected


@pytest.mark.parametrize(("theme", "shown"), [("dark", 'data-theme="dark"'), ("light", 'data-theme="light"')])
def test_the_choice_of_colours_is_kept(pages, theme, shown):
    answer = pages.post("/-/theme", theme=theme, next="/-/compare")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/-/compare")
    assert shown in pages.get("/").text
    pages.post("/-/theme", theme="")
    assert "data-theme" not in pages.get("/").text


def test_an_unknown_theme_is_ignored(pages):
    pages.post("/-/theme", theme='x" onload="alert(1)')
    pages.session.cookies.set("deltahub_theme", "evil")
    assert '<html lang="en">' in pages.get("/").text


def test_a_form_of_any_size_is_not_read(pages):
    assert pages.post("/-/sign-in", token="a" * 100_000).status_code == 413
