"""Command `amend`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt, RefArg
from .output import Output

_LARGEST = 1 << 20  # bytes of a card that are read


def amend(
    ref: RefArg,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Why this version.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME=VALUE",
            help="A metric that was measured later; NAME= removes it. May be repeated.",
        ),
    ] = None,
    description: Annotated[str | None, typer.Option("--description", help="The version in a few words.")] = None,
    card: Annotated[
        Path | None, typer.Option("--card", metavar="FILE", help="Markdown to show in place of the pushed card.")
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Change the message, metrics, description or card of a pushed version, by default the newest. Its content and digest stay.

    Each change is recorded in the log. An empty text removes a message or description; an empty card restores the pushed one.

    [dim]deltahub amend DeltaHub/sst2-t5-base --metric accuracy=0.93[/dim]

    [dim]deltahub amend DeltaHub/sst2-t5-base@v2 -m "3 epochs" --description "trained on SST-2" --card README.md[/dim]
    """
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference
    from deltahub.registry.amend import DESCRIPTION, Amendment

    reference = Reference.parse(ref)
    if message is None and not metric and description is None and card is None:
        raise typer.BadParameter("Nothing to change: pass --message, --metric, --description or --card.")
    amendment = Amendment(message, _metrics(metric or ()), description, _card(card) if card else None)
    exact, entry = Hub.open().amend(reference, amendment)
    data = {
        "reference": str(exact),
        "digest": entry.digest,
        "message": entry.message,
        "metrics": dict(entry.summary.get("metrics", {})),
        "description": entry.summary.get(DESCRIPTION, ""),
        "card": entry.card,
    }
    Output(as_json=json, quiet=quiet).result(data, str(exact), f"Amended; its digest is still {entry.digest.short}.")


def _metrics(pairs: Sequence[str]) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            metrics[name] = float(value) if value else None
        except ValueError:
            equals = ""
        if not equals:
            msg = f"{pair!r} is not a metric: expected NAME=VALUE with a number, such as accuracy=0.93."
            raise typer.BadParameter(msg, param_hint="--metric")
    return metrics


def _card(path: Path) -> str:
    from deltahub.errors import CheckpointError
    from deltahub.files.atomic import read_file

    data = read_file(path, _LARGEST)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 text. Save the card as UTF-8."
        raise CheckpointError(msg) from error
