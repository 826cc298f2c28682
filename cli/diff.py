"""Command `diff`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import JsonOpt, QuietOpt
from .output import Output, print_json, say

if TYPE_CHECKING:
    from deltahub.algebra.diff import DeltaDifference, UpdateDifference

_Delta = typer.Argument(metavar="A", help="A folder, a reference or an https:// link.")
_Other = typer.Argument(metavar="B", help="The delta to compare it with.")


def diff(
    first: Annotated[str, _Delta],
    second: Annotated[str, _Other],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with a plot into this file.")
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Compare two deltas: options, modules, and the update of each module.

    Of a LoRA the product is compared, not the factors: the cosine, the norm of the difference relative to A, and the effective rank.

    [dim]deltahub diff acme/ner@v1 acme/ner@v2[/dim]

    [dim]deltahub diff ./a ./b --html diff.html[/dim]
    """
    from deltahub.algebra.diff import diff as compute

    difference = compute(first, second)
    out = Output(as_json=json, quiet=quiet)
    if html:
        from deltahub.algebra.diff_page import page
        from deltahub.files.atomic import storage_errors

        with storage_errors("Writing the page", html):
            html.write_text(page(difference), "utf-8")
    if json:
        print_json({**asdict(difference), "same": difference.same})
        return
    if quiet:
        say("same" if difference.same else "different")
        return
    _print(out, difference)


def _print(out: Output, difference: DeltaDifference) -> None:
    facts = [(key, str(pair[0]), str(pair[1])) for key, pair in difference.options.items()]
    facts += [("only in A", name, "") for name in difference.only_first]
    facts += [("only in B", "", name) for name in difference.only_second]
    if facts:
        out.rows(("differs", "A", "B"), facts, key=None)
    if parts := [*difference.updates, *difference.tensors]:
        columns = ("module or tensor", "cosine", "difference", "norms", "ranks", "effective ranks")
        out.rows(columns, [_row(part) for part in parts], key=None)
    total = f"cosine {_number(difference.cosine)}, difference {_number(difference.difference)}"
    state = "The same update." if difference.same else f"All updates: {total}."
    say(f"{state} Backbones: {difference.backbone}.", err=True)


def _row(part: UpdateDifference) -> tuple[str, ...]:
    ranks = " ".join(map(str, part.ranks)) if part.ranks else ""
    effective = " ".join(f"{rank:.1f}" for rank in part.effective_ranks) if part.effective_ranks else ""
    norms = " ".join(f"{value:.4g}" for value in part.norms)
    return part.name, _number(part.cosine), _number(part.difference), norms, ranks, effective


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
