"""Cards: Markdown that is shown, and nothing else that could be in it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deltahub.server.pages.card import Card, address, render_card, split_front_matter
from deltahub.server.pages.cards import BUSY, SLOW, Cards
from tests.server.raw import Wire

EVIL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe src='javascript:alert(1)'></iframe>",
    "<style>body{display:none}</style>",
    "<a href='javascript:alert(1)'>x</a>",
    "<div hx-get='/-/sign-out' hx-trigger='load'>x</div>",
    "<details open ontoggle=alert(1)>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVa\tScript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](vbscript:x)",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "![x](javascript:alert(1))",
    '![x" onerror="alert(1)](x.png)',
    '[x](x "t" onclick=alert(1))',
    "<javascript:alert(1)>",
    "```html\n<script>alert(1)</script>\n```",
    "| <script>alert(1)</script> |\n|-|\n| <b onclick=x>y</b> |",
    "[x]: javascript:alert(1)\n\n[x]",
)


def shown(text: str) -> str:
    return str(render_card(text, "/acme/ner/blob/v3/", "/acme/ner/resolve/v3/", frozenset({"plot.png", "x.png"})).html)


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("text", EVIL)
def test_nothing_of_a_card_runs(text):
    for tag, attributes in Elements(shown(text)).found:
        assert tag in {"p", "a", "img", "pre", "code", "div", "table", "thead", "tbody", "tr", "th", "td"}
        assert set(attributes) <= {"href", "src", "alt", "title", "rel", "class", "tabindex", "role", "aria-label"}
        for place in (attributes.get("href"), attributes.get("src")):
            assert place is None or place.startswith(("/acme/ner/blob/v3/", "/acme/ner/resolve/v3/"))


def test_markdown_is_rendered():
    html = shown(
        "Some *words*, **bold**, `code`, ~~gone~~.\n\n- one\n- two\n\n> said\n\n```python\nx = 1\n```\n\n| a |\n|:-:|\n| b |\n"
    )
    for part in (
        "<em>words</em>",
        "<strong>bold</strong>",
        "<code>code</code>",
        "<s>gone</s>",
        "<li>one</li>",
        "<blockquote>",
        "x = 1",
        "<td>b</td>",
    ):
        assert part in html


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# a\n## b\n### c", ["h3", "h4", "h5"]),
        ("### a\n# b", ["h3", "h3"]),
        ("# a\n###### b", ["h3", "h4"]),
        ("#\n## b", ["h3"]),
    ],
)
def test_card_headings_are_below_page_headings_and_skip_no_level(text, expected):
    assert re.findall(r"<(h\d)>", shown(text)) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("docs/a b.md", "/f/docs/a%20b.md"),
        ("./a.md", "/f/a.md"),
        ("https://a.org/x", "https://a.org/x"),
        ("mailto:a@b.c", "mailto:a@b.c"),
        ("#use", "#use"),
        ("../x", None),
        ("a/../../x", None),
        ("//evil.org/x", None),
        ("/-/sign-out", None),
        ("\\\\evil.org", None),
        ("ftp://a", None),
        ("javascript:alert(1)", None),
        ("http://[", None),
    ],
)
def test_a_link_leads_into_the_repository_or_openly_elsewhere(target, expected):
    assert address(target, "/f/") == expected


def test_pictures_of_the_repository_are_shown_and_those_from_elsewhere_are_links():
    assert shown("![a plot](plot.png)") == '<p><img src="/acme/ner/resolve/v3/plot.png" alt="a plot"></p>\n'
    assert shown("![a plot](missing.png)") == "<p>a plot</p>\n"
    elsewhere = shown("![a plot](https://tracker.example/x.png)")
    assert "<img" not in elsewhere
    assert 'rel="nofollow noopener noreferrer"' in elsewhere


@pytest.mark.parametrize("link", ["[a] ", "![a] ", "[a][] "])
@pytest.mark.parametrize("target", ["x" * 60_000, "https://x.example/" + "x" * 60_000, 'x "' + "t" * 60_000 + '"'])
def test_a_long_address_is_not_repeated_by_thousands_of_short_links(link, target):
    assert len(shown(f"[a]: {target}\n\n" + link * 2000)) < 500_000


def test_front_matter_is_separated_and_read_as_text():
    card = render_card(
        "---\nlicense: mit\ntags: [a, b]\nn: 2026-01-01\nx:\n  - k: v\n---\n# T\n", "/a/b/blob/v1/", "/a/b/resolve/v1/"
    )
    assert dict(card.facts) | {"x": ""} == {"license": "mit", "tags": "a, b", "n": "2026-01-01", "x": ""}
    assert str(card.html) == "<h3>T</h3>\n"
    assert split_front_matter("# no\n---\nx: y\n") == ("", "# no\n---\nx: y\n")
    assert split_front_matter("---\r\na: b\r\n---\r\nc") == ("a: b", "c")
    assert split_front_matter("---\na: b\n---") == ("a: b", "")


@pytest.mark.parametrize(
    ("head", "wrong"),
    [
        ("a: &x [1]\nb: [*x, *x]", "aliases are not read"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML"),
        ("a: [", "not valid YAML"),
        ("- a\n- b", "expected keys"),
        ("[" * 3000, "not valid YAML"),
        ("x: " + "y" * 70_000, "are read"),
    ],
    ids=["aliases", "python", "broken", "a list", "deep", "long"],
)
def test_unreadable_front_matter_is_reported(head, wrong):
    card = render_card(f"---\n{head}\n---\nThe text.\n", "/a/b/blob/v1/", "/a/b/resolve/v1/")
    assert wrong in card.wrong
    assert card.facts == ()
    assert "The text." in card.html


# ----- in a process of their own -----


@pytest.fixture
def cards() -> Iterator[Cards]:
    found = Cards(seconds=0.3)
    yield found
    found.close()


def rendered_by(cards: Cards, text: str, *files: str, digest: str = "") -> Card | str:
    with Wire(None) as wire:
        return wire.run(cards.rendered(digest or text[:64], text, files))


def test_a_card_is_rendered_once_for_all_versions_that_have_it(cards, monkeypatch):
    first = rendered_by(cards, "[a](b.md) ![](x.png)", "x.png", "v1.txt")
    monkeypatch.setattr(cards._process, "render", lambda _: pytest.fail("it was rendered again"))
    again = rendered_by(cards, "[a](b.md) ![](x.png)", "v1.txt", "x.png")
    for card, version in ((first, "v1"), (again, "v2")):
        html = str(cards.placed(card, "/acme/ner", version).html)
        assert f'href="/acme/ner/blob/{version}/b.md"' in html
        assert f'src="/acme/ner/resolve/{version}/x.png"' in html


def test_a_card_that_takes_too_long_is_given_up_on_once_and_the_next_one_is_rendered(cards, monkeypatch):
    assert rendered_by(cards, "![" * (64 << 10), digest="slow") == SLOW
    assert "<p>fine</p>" in str(rendered_by(cards, "fine").html)
    monkeypatch.setattr(cards._process, "render", lambda _: pytest.fail("it was rendered again"))
    assert rendered_by(cards, "![" * (64 << 10), "another-file", digest="slow") == SLOW


def test_the_queue_of_cards_has_an_end(cards, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr("deltahub.server.pages.cards._WAITING", 2)
    monkeypatch.setattr("deltahub.server.pages.cards.CARD_TIMEOUT", 0.0)
    monkeypatch.setattr(cards._process, "render", lambda _: release.wait(60) and None)
    assert [rendered_by(cards, text) for text in "abc"] == [BUSY] * 3
    assert len(cards._queue) == 2
    release.set()


def test_the_process_that_renders_cards_gets_no_secret_and_begins_again_when_it_was_ended(cards, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    rendered_by(cards, "one")
    process = cards._process._process
    assert b"hunter2" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    process.kill()
    process.wait()
    assert "<p>two</p>" in str(rendered_by(cards, "two").html)
