"""Rendering of a model card to safe HTML.

Markdown is rendered without raw HTML, then sanitised with an allow-list, so that safety does not depend on one step alone.
External images become links: reading a card sends no request to another host.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

from deltahub.text.front_matter import LARGEST as LARGEST_HEAD
from deltahub.text.front_matter import read_yaml

LARGEST: Final = 128 << 10  # bytes of a card to render
_FIRST_HEADING: Final = 3  # the card is part of a section of the page
_LAST_HEADING: Final = 6
# Characters of all link addresses and titles: one line can define an address used by thousands of short links.
_LONGEST_LINKS: Final = LARGEST
_SCHEMES: Final = frozenset({"http", "https", "mailto"})
_ALLOWED: Final = {
    "a": {"href", "title"},
    "img": {"src", "alt", "title"},
    "th": {"class"},
    "td": {"class"},
    "ol": {"start"},
    "div": {"class", "tabindex", "role", "aria-label"},  # around tables
    **{
        name: set[str]()
        for name in (
            *("p", "h3", "h4", "h5", "h6", "ul", "li", "em", "strong", "s", "code", "pre", "blockquote", "hr", "br"),
            *("table", "thead", "tbody", "tr"),
        )
    },
}


@dataclass(frozen=True)
class Card:
    """A rendered card.

    Attributes:
        html: the text as safe HTML.
        facts: the front matter in order, keys and values as text.
        wrong: error in the front matter; empty if it is valid.
    """

    html: Markup
    facts: tuple[tuple[str, str], ...] = ()
    wrong: str = ""


def render_card(text: str, links: str, pictures: str, files: frozenset[str] = frozenset()) -> Card:
    """Render a card. A long one can take minutes: `cards.py` runs this in a separate process.

    Args:
        text: Markdown, optionally after front matter between lines of ``---``.
        links: base of relative links, e.g. ``"/acme/ner/blob/v3/"``.
        pictures: base of images, e.g. ``"/acme/ner/resolve/v3/"``.
        files: paths of the files that images may show.
    """
    head, body = split_front_matter(text)
    facts, error = front_matter(head)
    environment = {
        "links": links,
        "pictures": pictures,
        "files": files,
        "left": _LONGEST_LINKS,
    }
    tokens = _MARKDOWN.parse(body, environment)
    _fit_headings(tokens)
    rendered = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, environment)
    clean = nh3.clean(
        rendered,
        tags=set(_ALLOWED),
        attributes=_ALLOWED,
        url_schemes=set(_SCHEMES),
        link_rel="nofollow noopener noreferrer",
    )
    return Card(Markup(clean), facts, error)  # noqa: S704  (sanitised by nh3)


def split_front_matter(text: str) -> tuple[str, str]:
    """Split a card into the YAML between the first lines of ``---``, and the rest."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return "", text
    head, end, body = text[4:].partition("\n---\n")
    if not end and head.endswith("\n---"):
        return head.removesuffix("\n---"), ""
    return (head, body) if end else ("", text)


def front_matter(head: str) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the front matter as pairs of text, and the error in it."""
    if not head.strip():
        return (), ""
    if len(head) > LARGEST_HEAD:
        return (), f"it has {len(head):,} characters; at most {LARGEST_HEAD:,} are read"
    try:
        mapping = read_yaml(head)
    except ValueError as error:
        return (), f"it is not valid YAML ({error})"
    return tuple((key, _as_text(value)) for key, value in mapping.items()), ""


def _as_text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(str, value))
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, indent=1, default=str)
    return "" if value is None else str(value)


def _fit_headings(tokens: Sequence[Token]) -> None:
    """Make headings begin below the page's own and skip no level; turn empty ones into paragraphs."""
    last = _FIRST_HEADING - 1
    for at, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        opened, content, closed = tokens[at : at + 3]
        level = min(last + 1, int(token.tag[1:]) + _FIRST_HEADING - 1, _LAST_HEADING)
        name = f"h{level}" if content.content.strip() else "p"
        opened.tag = closed.tag = name
        last = level if name != "p" else last


def address(target: str, files: str) -> str | None:
    """Return the target of a card's link; None if it is not allowed.

    Args:
        target: as in the card.
        files: base of relative links.
    """
    try:
        parts = urlsplit(target)
    except ValueError:
        return None
    if parts.scheme:
        return target if parts.scheme.lower() in _SCHEMES else None
    if parts.netloc or target.startswith(("/", "\\", "#", "?")):
        return target if target.startswith("#") else None
    steps = [step for step in parts.path.split("/") if step not in ("", ".")]
    return None if ".." in steps else files + quote("/".join(steps), safe="/%")


def _link(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: dict[str, Any]) -> str:
    token = tokens[at]
    href = _limited_address(env, str(token.attrGet("href") or ""), env["links"], str(token.attrGet("title") or ""))
    if href is None:
        token.attrs.clear()
    else:
        token.attrSet("href", href)
    return renderer.renderToken(tokens, at, options, env)


def _image(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: dict[str, Any]) -> str:
    token = tokens[at]
    source = _limited_address(env, str(token.attrGet("src") or ""), env["pictures"])
    words = renderer.renderInlineAsText(token.children or [], options, env)
    if source is not None and urlsplit(source).scheme:
        return f'<a href="{_escaped(source)}">{_escaped(words or "image")} (external image)</a>'
    if source is None or unquote(source.removeprefix(env["pictures"])) not in env["files"]:
        return _escaped(words)
    return f'<img src="{_escaped(source)}" alt="{_escaped(words)}">'


def _limited_address(env: dict[str, Any], target: str, files: str, title: str = "") -> str | None:
    """Return the target of a link while the total length of all links is within the limit: see `address`."""
    env["left"] -= len(target) + len(title)
    return address(target, files) if env["left"] >= 0 else None


def _table(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Mapping[str, Any]) -> str:
    return '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>\n'


def _table_end(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: Mapping[str, Any]) -> str:
    return "</table></div>\n"


def _escaped(text: str) -> str:
    return str(Markup.escape(text))


def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    for name, rule in (
        ("link_open", _link),
        ("image", _image),
        ("table_open", _table),
        ("table_close", _table_end),
    ):
        markdown.add_render_rule(name, rule)
    return markdown


_MARKDOWN: Final = _markdown()
