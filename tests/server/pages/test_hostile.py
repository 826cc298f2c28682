"""Whatever users push, nothing of it runs in the browser of those who look at it."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from tests.server.pages.test_card import EVIL

BAD = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>{{7919*7907}}"
TURNED = "\u202egnp.exe\u200b\x1b[31m"


@pytest.fixture
def hostile(push, registry, tmp_path) -> str:
    """A delta of which everything that is free text is hostile, and one of files that would run if they could."""
    tensors = {f"h.0.{BAD}.deltas.w": np.ones(3, np.float32), f"h.1.{TURNED}.deltas.w": np.ones(3, np.float32)}
    push(
        "evil/one",
        author=BAD,
        message=BAD + TURNED,
        metrics={BAD: BAD, "accuracy": 0.5},
        method="bitfit",
        tensors=tensors,
        backbone=BAD,
        card=f"---\ntitle: '{BAD.replace(chr(39), '')}'\n{BAD.partition('>')[0]}: x\n---\n" + "\n\n".join(EVIL),
        backbone_class=BAD,
        metadata={"description": BAD, "train_tasks": [BAD], "license": TURNED, "name": "javascript:alert(1)"},
        parents=[{"relation": "resumed", "digest": f"sha256:{'0' * 64}", "name": f"javascript:alert(1)//{BAD}"}],
    )
    push(
        "evil/one",
        method="bitfit",
        tensors={f"h.0.{BAD}.deltas.v": np.ones(3, np.float32)},
        backbone=BAD,
        metrics={BAD: 1},
    )
    files = {
        "page.html": b"<script>alert(1)</script>",
        "plot.svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(2)</script></svg>',
        "README.md": b"![x](plot.svg) [page](page.html)",
        "data.json": json.dumps({BAD: TURNED}).encode(),
    }
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    entries = tuple(
        FileEntry(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())
    )
    manifest = Manifest({}, entries, (), {"total": 0, "delta": 0}, (), "files")
    publish(registry, Publication(Reference.parse("evil/files"), manifest, folder))
    return "evil/one"


PAGES = (
    "/",
    "/?q=%3Cscript%3Ealert(1)%3C/script%3E&tag=%22%3E%3Cimg%20src=x%20onerror=alert(1)%3E&type=%3Cb%3E&author=%27&sort=%22",
    "/evil/one",
    "/evil/one/tree/v1",
    "/evil/one/versions",
    "/evil/one/layers/v1",
    "/evil/one/blob/v1/README.md",
    "/evil/one/blob/v1/delta_config.json",
    "/evil/one/blob/v1/delta.safetensors",
    "/-/compare?left=evil/one@v1&right=evil/one@v2",
    "/evil/files",
    "/evil/files/blob/v1/page.html",
    "/evil/files/blob/v1/plot.svg",
    "/evil/files/blob/v1/data.json",
    "/evil/files/layers/v1",
    "/-/sign-in?next=javascript:alert(1)",
    "/-/sign-in?next=%22%3E%3Cscript%3Ealert(1)%3C/script%3E",
)


@pytest.mark.slow
def test_nothing_that_was_pushed_runs(visit, pages, hostile):
    page = visit(pages.url)
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog opened: {dialog.message}"))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for path in PAGES:
        page.goto(pages.url + path)
        page.wait_for_load_state("networkidle")
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        links = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.protocol)")
        assert set(links) <= {"http:", "https:", "mailto:"}, path
        scripts = page.evaluate("[...document.scripts].map(s => s.getAttribute('src'))")
        assert all(source and source.startswith("/-/static/") for source in scripts), path
        attributes = page.evaluate(
            "[...document.querySelectorAll('main *')].flatMap(e => [...e.attributes].map(a => a.name)).filter(n => n.startsWith('on') || n === 'style')"
        )
        assert attributes == [], path
        assert str(7919 * 7907) not in page.locator("main").inner_text(), path
    assert all(url.startswith(pages.url) for url in asked)


def test_files_that_would_run_are_downloaded(pages, hostile):
    for name in ("page.html", "plot.svg"):
        for kind in ("resolve", "raw"):
            answer = pages.get(f"/evil/files/{kind}/v1/{name}")
            assert answer.status_code == 200
            assert answer.headers["Content-Disposition"].startswith("attachment")
            assert answer.headers["Content-Type"] in ("application/octet-stream", "text/plain; charset=utf-8")
            assert "sandbox" in answer.headers["Content-Security-Policy"]


def test_letters_that_turn_others_round_are_shown_as_numbers(pages, hostile):
    for path in ("/evil/one/tree/v1", "/evil/one/versions", "/evil/one/layers/v1", "/evil/files/blob/v1/data.json"):
        text = pages.get(path).text
        assert "\u202e" not in text, path
        assert "\x1b" not in text, path


def test_a_card_never_asks_htmx_for_anything(pages, push):
    push("evil/two", card='<div hx-get="/-/sign-out" hx-trigger="load" data-hx-post="/x">x</div>\n\n**hx**')
    text = pages.get("/evil/two").text
    assert "&lt;div hx-get" in text
    assert "<div hx-" not in text
