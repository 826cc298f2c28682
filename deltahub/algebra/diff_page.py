"""A page that shows the differences between two deltas: complete in one file, without a script."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from deltahub.algebra.diff import DeltaDifference, UpdateDifference
from deltahub.text.visible import visible

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1d2330; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 } th, td { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } code { font-size: 90% } svg { max-width: 100%; height: auto }
svg text { font: 12px system-ui, sans-serif; fill: #1d2330 }
"""
_ROW: Final = 18  # pixels
_NAMES: Final = 380  # pixels for names
_BARS: Final = 240  # pixels for the bars of one measure
_GAP: Final = 70  # pixels after the bars, for their number
_LONGEST: Final = 56  # characters of a name in the plot


def page(difference: DeltaDifference) -> str:
    """Return the page as HTML.

    Args:
        difference: the differences between two deltas.
    """
    first, second = map(_text, difference.deltas)
    parts = [*difference.updates, *difference.tensors]
    options = [(key, json.dumps(pair[0]), json.dumps(pair[1])) for key, pair in difference.options.items()]
    facts = [
        ("digest", *difference.digests),
        *options,
        ("only in it", ", ".join(difference.only_first), ", ".join(difference.only_second)),
    ]
    total = f"Cosine of all updates {_number(difference.cosine)}, relative difference {_number(difference.difference)}."
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{first} and {second}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>{first} and {second}</h1>\n<p>Backbones: {_text(difference.backbone)}. {total}</p>\n"
        f"<h2>Options and modules that differ</h2>\n{_table(('', first, second), facts)}\n"
        f"<h2>Updates</h2>\n{_plot(parts)}\n{_table(_COLUMNS, map(_row, parts), numbers=True)}\n</body></html>\n"
    )


_COLUMNS: Final = ("module or tensor", "cosine", "difference", "norm", "norm", "rank", "rank", "effective", "effective")


def _row(part: UpdateDifference) -> tuple[str, ...]:
    ranks = [str(rank) for rank in part.ranks] if part.ranks else ["", ""]
    effective = [f"{rank:.1f}" for rank in part.effective_ranks] if part.effective_ranks else ["", ""]
    norms = [f"{value:.4g}" for value in part.norms]
    return part.name, _number(part.cosine), _number(part.difference), *norms, *ranks, *effective


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _text(text: Any) -> str:
    return escape(visible(str(text)))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """Return a table; the headings are HTML already, the cells are not."""
    kind = ' class="n"' if numbers else ""
    head = "".join(f"<th{kind if at else ''}>{column}</th>" for at, column in enumerate(columns))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind if at else ''}>{_text(cell)}</td>" for at, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _plot(parts: Sequence[UpdateDifference]) -> str:
    """Draw a row for each part: a bar for the cosine, from -1 to 1, and one for the difference."""
    if not parts:
        return "<p>They share no module and no tensor.</p>"
    widest = max([part.difference or 0.0 for part in parts] + [1.0])
    second = _NAMES + _BARS + _GAP
    rows = []
    for number, part in enumerate(parts, 1):
        y = number * _ROW
        name = part.name if len(part.name) <= _LONGEST else f"...{part.name[3 - _LONGEST :]}"
        middle, angle = _NAMES + _BARS / 2, (part.cosine or 0.0) * _BARS / 2
        colour = "#2563eb" if angle >= 0 else "#dc2626"
        size = (part.difference or 0.0) / widest * _BARS
        rows.append(
            f'<text x="0" y="{y + 13}">{_text(name)}</text>'
            f'<rect x="{min(middle, middle + angle):.1f}" y="{y + 4}" width="{abs(angle):.1f}" height="10" fill="{colour}"/>'
            f'<text x="{_NAMES + _BARS + 6}" y="{y + 13}">{_number(part.cosine)}</text>'
            f'<rect x="{second}" y="{y + 4}" width="{size:.1f}" height="10" fill="#d97706"/>'
            f'<text x="{second + _BARS + 6}" y="{y + 13}">{_number(part.difference)}</text>'
        )
    height, width = (len(parts) + 2) * _ROW, second + _BARS + _GAP
    axis = (
        f'<line x1="{_NAMES + _BARS / 2}" y1="{_ROW}" x2="{_NAMES + _BARS / 2}" y2="{height - _ROW}" stroke="#94a3b8"/>'
    )
    heads = f'<text x="{_NAMES}" y="13">cosine, -1 to 1</text><text x="{second}" y="13">difference, 0 to {widest:.2f}</text>'
    label = "Cosine and relative difference of each module"
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">{heads}{axis}{"".join(rows)}</svg>'
