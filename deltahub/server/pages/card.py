"""A model card as safe HTML.

Markdown is rendered without raw HTML, then cleaned by a list of what may stay, so that neither step alone stands between a card and
the reader. Pictures from elsewhere become links: reading a card tells nobody.
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

from deltahub.server import frontmatter

LARGEST: Final = 128 << 10  # bytes of a card that is rendered
_FIRST_HEADING: Final = 3  # of the page around it, the card is a part of a section
_LAST_HEADING: Final = 6
# Letters of the addresses and titles of all links: one line can define an address that thousands of short links stand for.
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
    """A card to show.

    Attributes:
        html: the text, safe to show.
        facts: the front matter, key and value as text, in its order.
        wrong: what is wrong with the front matter; empty if nothing is.
    """

    html: Markup
    facts: tuple[tuple[str, str], ...] = ()
    wrong: str = ""


def render_card(text: str, links: str, pictures: str, files: frozenset[str] = frozenset()) -> Card:
    """Render a card. A long one can take minutes: `cards.py` has it done in a process of its own.

    Args:
        text: Markdown, perhaps after front matter between lines of ``---``.
        links: what relative links are relative to, e.g. ``"/acme/ner/blob/v3/"``.
        pictures: what pictures are relative to, e.g. ``"/acme/ner/resolve/v3/"``.
        files: the paths of the files that pictures may show.
    """
    head, body = split_front_matter(text)
    facts, wrong = front_matter(head)
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
    return Card(Markup(clean), facts, wrong)  # noqa: S704  (nh3 has cleaned it)


def split_front_matter(text: str) -> tuple[str, str]:
    """The YAML between the first lines of ``---``, and the rest."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return "", text
    head, end, body = text[4:].partition("\n---\n")
    if not end and head.endswith("\n---"):
        return head.removesuffix("\n---"), ""
    return (head, body) if end else ("", text)


def front_matter(head: str) -> tuple[tuple[tuple[str, str], ...], str]:
    """The facts of a front matter as text, and what is wrong with it."""
    if not head.strip():
        return (), ""
    if len(head) > frontmatter.LARGEST:
        return (), f"it has {len(head):,} characters; {frontmatter.LARGEST:,} are read"
    try:
        found = frontmatter.read_yaml(head)
    except ValueError as error:
        return (), f"it is not YAML that can be read here ({error})"
    return tuple((key, _as_text(value)) for key, value in found.items()), ""


def _as_text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(str, value))
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, indent=1, default=str)
    return "" if value is None else str(value)


def _fit_headings(tokens: Sequence[Token]) -> None:
    """Let headings begin below those of the page and skip no level; one without text is no heading."""
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
    """Where a link of a card leads; None if it must not lead there.

    Args:
        target: as the card says.
        files: what a relative one is relative to.
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
    href = _within(env, str(token.attrGet("href") or ""), env["links"], str(token.attrGet("title") or ""))
    if href is None:
        token.attrs.clear()
    else:
        token.attrSet("href", href)
    return renderer.renderToken(tokens, at, options, env)


def _image(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: Any, env: dict[str, Any]) -> str:
    token = tokens[at]
    source = _within(env, str(token.attrGet("src") or ""), env["pictures"])
    words = renderer.renderInlineAsText(token.children or [], options, env)
    if source is not None and urlsplit(source).scheme:
        return f'<a href="{_escaped(source)}">{_escaped(words or "picture")} (a picture from elsewhere)</a>'
    if source is None or unquote(source.removeprefix(env["pictures"])) not in env["files"]:
        return _escaped(words)
    return f'<img src="{_escaped(source)}" alt="{_escaped(words)}">'


def _within(env: dict[str, Any], target: str, files: str, title: str = "") -> str | None:
    """Where a link leads, as long as those of the card are not too long altogether: see `address`."""
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
