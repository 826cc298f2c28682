"""A model's tree as one self-contained HTML file: no script, no network; it folds, prints and follows dark mode."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from deltahub.engine.drawing.folding import Leaf, Node, abbreviated, printable, short_count
from deltahub.engine.structure.maps import MARK

STATIC: Final = Path(__file__).parent / "static"

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="facts">{facts}</p>
<ul class="legend" aria-label="Legend">
<li><span class="name">name</span></li><li><span class="name repeated">several equal modules</span></li>
<li><span class="kind">type</span></li><li><span class="common">common name</span></li>
<li><span class="trained">trained</span></li><li><span class="frozen">frozen</span></li>
<li><span class="delta">delta</span></li>
</ul>
<div class="tree">
{tree}
</div>
</main>
</body>
</html>
"""


def document(title: str, facts: Mapping[str, int], nodes: Sequence[Node], common_name: Callable[[str], str]) -> str:
    """Render the page.

    Args:
        title: the name of the model.
        facts: numbers of parameters by label.
        nodes: the modules, as returned by `fold`.
        common_name: returns a module's common name, ending in "@", for its real name.
    """
    style = "".join((STATIC / name).read_text("utf-8") for name in ("palette.css", "document.css"))
    totals = " · ".join(f"<b>{number:,}</b> {_text(label)}" for label, number in facts.items() if number)
    lines = "\n".join(line for node in nodes for line in _lines(node, "", common_name))
    return _PAGE.format(title=_text(title), style=style, facts=totals, tree=lines)


def _lines(node: Node, prefix: str, common_name: Callable[[str], str]) -> Iterator[str]:
    path = f"{prefix}{node.names[0]}"  # folded modules have equal names below, so the first represents all
    row = " ".join(_row(node, [common_name(f"{prefix}{name}") for name in node.names]))
    if not node.children:
        yield f'<p class="module">{row}</p>'
        return
    yield f"<details open><summary>{row}</summary>"
    for child in node.children:
        yield from _lines(child, f"{path}.", common_name)
    yield "</details>"


def _row(node: Node, commons: Sequence[str]) -> Iterator[str]:
    several = " repeated" if len(node.names) > 1 else ""
    belongs = " delta" if node.delta else ""
    yield f'<span class="name{several}{belongs}">{_text(abbreviated(node.names))}</span>'
    yield f'<span class="kind">{_text(", ".join(dict.fromkeys(node.kinds)))}</span>'
    for common in dict.fromkeys(short_name(name) for name in commons if name.endswith(MARK)):
        yield f'<span class="common">{_text(common)}</span>'
    yield from map(_leaf, node.parameters)
    if node.children and node.size:
        times = f"{len(node.names)} × " if len(node.names) > 1 else ""
        yield f'<span class="count">{times}{short_count(node.size)}</span>'


def short_name(common: str) -> str:
    """Shorten a common name to the part after the last block number, its usual form: ``"attn.q"``."""
    parts = common.split(".")
    start = next((at for at in range(len(parts), 0, -1) if MARK not in parts[at - 1]), 0)
    return ".".join(part.removesuffix(MARK) for part in parts[start:])


def _leaf(leaf: Leaf) -> str:
    shape = " × ".join(map(str, leaf.shape)) or "1"
    return f'<span class="{leaf.role}">{_text(leaf.name)} <i>{shape}</i></span>'


def _text(name: str) -> str:
    return html.escape(printable(name))
