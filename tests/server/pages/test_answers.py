"""Errors as pages for those who read, as JSON for programs; headers by which nothing foreign runs; files that pages need."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from deltahub.server.app import build_app
from deltahub.server.pages import front
from deltahub.server.pages.rendering import static_files
from deltahub.server.settings import Settings

PAGES = (
    "/",
    "/acme/ner",
    "/acme/ner/versions",
    "/acme/ner/layers/v1",
    "/acme/ner/blob/v1/README.md",
    "/-/compare",
    "/-/sign-in",
    "/nope",
    "/a/b",
)


@pytest.fixture
def ner(push) -> None:
    push("acme/ner")


@pytest.mark.usefixtures("ner")
@pytest.mark.parametrize("path", PAGES)
def test_every_page_allows_nothing_but_its_own_files(pages, path):
    headers = pages.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Cache-Control"] == "private, no-cache"


@pytest.mark.usefixtures("ner")
def test_a_hub_below_a_path_of_a_server_leads_nowhere_else(registry):
    app = build_app(registry, Settings(rate=0, public_url="https://acme.org/hub"))
    client = TestClient(app, headers={"Accept": "text/html"}, follow_redirects=False)
    for path in PAGES:
        found = re.findall(r'(?:href|src|action|hx-get)="(/[^"]*)"', client.get(path).text)
        assert found, path
        assert [link for link in found if not link.startswith("/hub/")] == []
    assert client.get("/acme/ner/commit/v1").headers["Location"].startswith("/hub/acme/ner")


@pytest.mark.usefixtures("ner")
@pytest.mark.parametrize("path", PAGES)
def test_no_page_holds_a_script_or_style_of_its_own_or_anything_from_elsewhere(pages, path):
    text = pages.get(path).text
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=\"/-/static/)", text)
    for place in re.findall(r'<(?:link|script|img)[^>]*\s(?:href|src)="([^"]+)"', text):
        assert place.startswith("/-/static/")


@pytest.mark.usefixtures("ner")
def test_files_of_a_page_may_be_kept_for_ever_because_their_address_changes(pages):
    found = re.findall(r'"(/-/static/[^"]+)"', pages.get("/").text)
    assert len(found) >= 5
    for place in found:
        answer = pages.get(place)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["Cache-Control"]
    assert pages.get("/-/static/page.js").content == static_files()["page.js"][0]


@pytest.mark.parametrize(
    "path",
    ["/-/static/nope.js", "/-/static/..%2Frendering.py", "/-/static/LICENSE.htmx", "/-/static/a/b"],
)
def test_no_other_file_is_served(pages, path):
    assert pages.get(path).status_code == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [("/a/b", 401), ("/a", 404), ("/a/b/c/d/e", 404), ("/..%2F..%2Fetc/passwd", 401), ("/a/b%00", 400)],
)
def test_a_missing_page_has_a_clear_error_and_links(pages, path, status):
    page = pages.get(path)
    assert page.status_code == status
    assert page.headers["Content-Type"].startswith("text/html")
    assert 'href="/">All deltas' in page.text
    assert ("Sign in with a token" in page.text) == (status != 400)


def test_programs_get_json(pages):
    for path, headers in (("/a/b", {"Accept": "*/*"}), ("/api/nothing", {})):
        answer = pages.get(path, headers=headers)
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json()["error"]


def test_a_failure_is_a_page_that_tells_nothing_of_the_machine(pages, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("/secret/path is broken")

    monkeypatch.setattr(front, "facets", fail)
    page = pages.get("/")
    assert page.status_code == 500
    assert "Its log has the reason" in page.text
    assert "secret" not in page.text
    assert "/secret/path is broken" in caplog.text
