"""Terminal output as an SVG that needs no font and no other external resource."""

from __future__ import annotations

from io import StringIO
from typing import Final

from rich.console import Console, RenderableType
from rich.terminal_theme import TerminalTheme

_WIDEST: Final = 10_000  # columns; a drawing takes only as many as it needs
_THEME: Final = TerminalTheme(
    (22, 24, 33),  # background
    (205, 211, 226),  # text
    [
        (22, 24, 33),  # black
        (255, 123, 134),  # red
        (126, 211, 142),  # green
        (229, 192, 123),  # yellow
        (116, 177, 255),  # blue
        (199, 146, 255),  # magenta
        (86, 201, 221),  # cyan
        (240, 243, 250),  # white
    ],
)
# Filled in by rich; each line of text carries its own width, so any monospace font works.
_FORMAT: Final = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: system-ui, sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def svg_of(picture: RenderableType, title: str) -> str:
    """Draw anything that rich can print, as wide as its longest line, and return the SVG.

    Args:
        title: the heading above the picture.
    """
    measure = Console(width=_WIDEST, file=StringIO(), color_system=None)
    lines = measure.render_lines(picture, pad=False)
    width = max(sum(segment.cell_length for segment in line) for line in lines)
    console = Console(width=width + 2, record=True, file=StringIO(), highlight=False)
    console.print(picture)
    return console.export_svg(title=title, theme=_THEME, code_format=_FORMAT, unique_id="deltahub")
