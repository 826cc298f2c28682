"""The structure graph: a model as a tree with equal siblings folded into one.

    root
    └── encoder (BertEncoder)
        └── layer (ModuleList)
            └── 0-11(BertLayer)
                └── query,key,value(Linear) weight:[768, 768] bias:[768]

Names are white, types green, repeated names red, trainable parameters cyan, frozen ones grey, deltas purple.

The same output can be saved as an SVG that needs no font and no other external resource.
"""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.terminal_theme import TerminalTheme
from rich.tree import Tree
from torch import nn

from deltahub.engine.drawing.folding import Leaf, Naming, Node, abbreviated, fold, printable, short_count
from deltahub.engine.drawing.html import document
from deltahub.engine.site import is_delta_name
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap

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


_COLORS: Final = {"trained": "cyan", "frozen": "grey50", "delta": "rgb(175,0,255)"}
LEGEND: Final = (
    f"[{_COLORS['trained']}]trained[/]  [{_COLORS['frozen']}]frozen[/]  [{_COLORS['delta']}]delta[/]  "
    "[red]0-11[/] several equal modules, drawn once"
)


class Visualization:
    """A drawing of a model.

    Args:
        plm: the model, with or without deltas.
    """

    def __init__(self, plm: nn.Module) -> None:
        self.plm = plm

    def structure_graph(
        self,
        rootname: str = "root",
        expand_params: bool = False,
        keep_non_params: bool = False,
        common_structure: bool = False,
        mapping: StructureMap | None = None,
        only_common: bool = False,
        printTree: bool = True,  # noqa: N803  (the name in OpenDelta)
        *,
        counts: bool = False,
    ) -> Tree:
        """Return the model as a tree.

        Args:
            rootname: name of the root, the model itself.
            expand_params: show every parameter on a separate line.
            keep_non_params: keep modules without parameters.
            common_structure: use the common names of modules that have one.
            mapping: the common names; by default those of `StructureMap.of`.
            only_common: with common names, leave out the modules without one; their children take their place.
            printTree: print the tree as well.
            counts: show the number of parameters of each module.
        """
        naming = _common(mapping or StructureMap.of(self.plm), only_common) if common_structure else None
        tree = Tree(f"[white]{escape(printable(rootname))}")
        for child in fold(self.plm, keep_empty=keep_non_params, naming=naming):
            _grow(tree, child, expand_params, counts)
        if printTree:
            Console(highlight=False).print(tree)
        return tree

    def save_svg(self, path: str | os.PathLike[str], rootname: str | None = None) -> None:
        """Save the tree, with counts and a legend, as an SVG that looks the same everywhere.

        Args:
            path: target file, e.g. ``"model.svg"``; an existing file is overwritten.
            rootname: name of the root; by default the model's class.
        """
        name = rootname or type(self.plm).__name__
        picture = Group(self.structure_graph(name, printTree=False, counts=True), "", LEGEND)
        svg = svg_of(picture, printable(name)).replace("#af00ff", "#c792ff")  # legible on the picture's dark background
        Path(path).write_text(svg, "utf-8")

    def save_html(self, path: str | os.PathLike[str], rootname: str | None = None) -> None:
        """Save the tree, with counts and a legend, as a standalone page with parts that open and close.

        Args:
            path: target file, e.g. ``"model.html"``; an existing file is overwritten.
            rootname: name of the root; by default the model's class.
        """
        parameters = list(self.plm.named_parameters())
        total = sum(p.numel() for _, p in parameters)
        trained = sum(p.numel() for _, p in parameters if p.requires_grad)
        delta = sum(p.numel() for name, p in parameters if is_delta_name(name))
        facts = {"parameters": total, "trained": trained, "in deltas": delta}
        structure = StructureMap.of(self.plm)
        page = document(rootname or type(self.plm).__name__, facts, fold(self.plm), structure.common_name)
        Path(path).write_text(page, "utf-8")


def _common(structure: StructureMap, only: bool) -> Naming:
    def naming(path: str) -> str | None:
        own_name = path.rpartition(".")[2]
        parent, _, last = structure.common_name(path).rpartition(".")
        if last.endswith(MARK):
            return last.removesuffix(MARK)
        counted = last.isdecimal() and parent.endswith(MARK)
        return own_name if counted or is_delta_name(path) or not only else None

    return naming


def _grow(tree: Tree, node: Node, expand: bool, counts: bool) -> None:
    parameters = [_leaf(leaf) for leaf in node.parameters]
    size = [f"[dim white]{_size(node)}[/]"] if counts and node.children else []
    branch = tree.add(" ".join([_label(node), *size, *([] if expand else parameters)]))
    for parameter in parameters if expand else ():
        branch.add(parameter)
    for child in node.children:
        _grow(branch, child, expand, counts)


def _size(node: Node) -> str:
    times = len(node.names)
    return short_count(node.size) if times == 1 else f"{times} × {short_count(node.size)}"


def _label(node: Node) -> str:
    names, kinds = [escape(printable(name)) for name in node.names], [escape(kind) for kind in node.kinds]
    if len(names) == 1:
        return f"[white]{names[0]} [green]({kinds[0]})"
    if len(set(kinds)) == 1:
        return f"[red]{abbreviated(names)}[green]({kinds[0]})"
    return ",".join(f"[red]{name}[green]({kind})" for name, kind in zip(names, kinds, strict=True))


def _leaf(leaf: Leaf) -> str:
    return f"[{_COLORS[leaf.role]}]{escape(printable(leaf.name))}:{escape(str(list(leaf.shape)))}"
