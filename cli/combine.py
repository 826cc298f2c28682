"""Command `combine`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JsonOpt, QuietOpt
from .output import Output, say, size_text

if TYPE_CHECKING:
    from deltahub.algebra.result import Change, Written

DeltasArg = Annotated[
    list[str], typer.Argument(metavar="DELTA...", help="Folders, references or https:// links; LoRAs of PEFT too.")
]
DeltaArg = Annotated[str, typer.Argument(metavar="DELTA", help="A folder, a reference or an https:// link.")]
ToOpt = Annotated[Path, typer.Option("--to", "-o", metavar="DIR", help="The folder to write, new or empty.")]
RankOpt = Annotated[int | None, typer.Option("--rank", metavar="R", help="The largest rank of an update.")]
EnergyOpt = Annotated[
    float | None,
    typer.Option("--energy", metavar="SHARE", help="The share of each update's squared norm to keep, such as 0.99."),
]
HeadsOpt = Annotated[
    str | None,
    typer.Option(
        "--heads",
        metavar="RULE",
        help="For tensors trained as a whole that differ: first (take it from the first delta that has it) or average.",
    ),
]
ForceOpt = Annotated[bool, typer.Option("--force", help="Replace a delta in DIR.")]


def combine(
    deltas: DeltasArg,
    to: ToOpt,
    method: Annotated[
        str, typer.Option("--method", metavar="METHOD", help="linear, cat, svd, slerp, ties or dare.")
    ] = "linear",
    weights: Annotated[
        str | None,
        typer.Option("--weights", "-w", metavar="W,W...", help="One for each delta; by default equal, adding up to 1."),
    ] = None,
    rank: RankOpt = None,
    energy: EnergyOpt = None,
    density: Annotated[
        float | None,
        typer.Option("--density", metavar="SHARE", help="The share of values to keep: ties 0.2, dare 0.5 by default."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the random values of dare.")] = 0,
    heads: HeadsOpt = None,
    no_check_hash: Annotated[
        bool, typer.Option("--no-check-hash", help="Combine deltas whose backbones differ or are not recorded.")
    ] = False,
    force: ForceOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Combine deltas of one backbone into a new delta.

    The updates are combined, not their factors: linear and slerp are exact for any ranks, alphas and rsLoRA unless --rank or --energy
    is given; cat keeps the factors beside each other; ties and dare are approximated, and the error of each module is printed.

    [dim]deltahub combine acme/ner acme/pos --weights 0.7,0.3 --to ./both[/dim]

    [dim]deltahub combine ./a ./b ./c --method ties --density 0.2 --rank 16 --to ./merged[/dim]
    """
    from deltahub.algebra.combine import combine as compute

    out = Output(as_json=json, quiet=quiet)
    with out.counting("Combining", "modules") as report:
        result = compute(
            deltas,
            to,
            method=method,
            weights=parsed_weights(weights),
            rank=rank,
            energy=energy,
            density=density,
            seed=seed,
            heads=heads,
            check_hash=not no_check_hash,
            force=force,
            report=report,
        )
    print_written(out, result)


def parsed_weights(text: str | None) -> list[float] | None:
    """Return the numbers of ``"0.7,0.3"``.

    Raises:
        BadParameter: one is not a number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        msg = f"expected numbers separated by commas, such as 0.7,0.3; got {text!r}"
        raise typer.BadParameter(msg, param_hint="--weights") from error


def print_written(out: Output, result: Written, lost: str = "lost") -> None:
    """Print a delta that was written: its folder, and the error of each module that is not exact.

    Args:
        lost: the heading of the errors.
    """
    data: dict[str, Any] = {
        "folder": str(result.folder),
        "digest": result.digest,
        "size": result.size,
        "modules": [vars(change) for change in result.changes],
        "trained": list(result.trained),
    }
    out.result(data, str(result.folder))
    if out.as_json or out.quiet:
        return
    print_errors(result.changes, lost)
    if result.trained:
        say(f"Trained as a whole: {_some(result.trained)}", err=True)
    say(
        f"{result.digest.short}, {size_text(result.size)}. Push it with: deltahub push {shlex.quote(str(result.folder))}",
        err=True,
    )


def print_errors(changes: Sequence[Change], lost: str) -> None:
    """Print the ranks, and the relative errors of the modules that are not exact, on stderr."""
    ranks = sorted({change.rank for change in changes})
    if changes:
        span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        say(f"{len(changes)} modules of rank {span}.", err=True)
    worst = sorted((change for change in changes if change.error > 1e-6), key=lambda change: -change.error)
    for change in worst[:_SHOWN]:
        say(f"{change.module}: rank {change.rank}, {change.error:.2%} of the update {lost}", err=True)
    if len(worst) > _SHOWN:
        say(f"and {len(worst) - _SHOWN} modules with smaller errors: --json prints them all.", err=True)


_SHOWN = 10


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
