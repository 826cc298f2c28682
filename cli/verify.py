"""verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import DAMAGED
from .options import JsonOpt, QuietOpt, SourceOpt
from .output import Output, print_json


def verify(
    target: Annotated[
        str | None, typer.Argument(metavar="REF|FOLDER", help="A delta or a folder; everything if left out.")
    ] = None,
    source: SourceOpt = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Read every byte again and compare it with what was published or saved.

    [dim]deltahub verify[/dim]

    [dim]deltahub verify DeltaHub/sst2-t5-base@v2[/dim]

    [dim]deltahub verify ./ckpt[/dim]
    """
    results = _folder(Path(target)) if target and Path(target).is_dir() else _registry(target, source)
    damaged = [(name, damage) for name, damage in results if damage]
    if json:
        print_json([{"reference": name, "damage": damage} for name, damage in results])
    elif damaged:
        Output(as_json=json, quiet=quiet).rows(("damaged", "what"), damaged)
    else:
        print(f"{len(results)} checked, all intact.")  # noqa: T201
    if damaged:
        if not json and not quiet:
            typer.echo(
                f"{len(damaged)} of {len(results)} are damaged. Restore them as said above, or push them again from intact copies.",
                err=True,
            )
        raise typer.Exit(DAMAGED)


def _folder(folder: Path) -> list[tuple[str, str | None]]:
    from deltahub.checkpoint import describe
    from deltahub.errors import IntegrityError

    try:
        describe(folder)
    except IntegrityError as error:  # what was asked for, not what went wrong
        return [(str(folder), str(error))]
    return [(str(folder), None)]


def _registry(target: str | None, source: str | None) -> list[tuple[str, str | None]]:
    from deltahub.hub import Hub
    from deltahub.reference import Reference
    from deltahub.registry.verify import verify as check

    hub = Hub.open()
    if target is None:
        return list(check(hub.registry(source)))
    reference = Reference.parse(target)
    registry = hub.registry(source or reference.source)
    return list(check(registry, [reference.path], reference.version))
