"""Commands `bundle export` and `bundle import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt
from .output import Output, size_text

app = typer.Typer(no_args_is_help=True, help="Carry deltas in one file to machines without a network.")


@app.command("export")
def export(
    refs: Annotated[list[str], typer.Argument(metavar="REF...", help="Deltas: [source:]namespace/name[@version].")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The bundle, a tar file.")],
    history: Annotated[bool, typer.Option("--history", help="All versions, aliases and moves of each.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Write deltas into one file, with their tags and aliases; the same deltas give the same bytes.

    [dim]deltahub bundle export acme/ner@champion DeltaHub/sst2-t5-base -o deltas.tar[/dim]

    [dim]deltahub bundle export acme/ner --history -o ner.tar[/dim]
    """
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference
    from deltahub.registry.bundle import export_bundle

    hub = Hub.open()
    references = [Reference.parse(ref) for ref in refs]
    selections = [(hub.held(reference)[0], reference) for reference in references]
    deltas = export_bundle(selections, output, history=history, vouched=hub.vouched)
    size = output.stat().st_size
    versions = [f"{delta.name}@{version}" for delta in deltas for version in delta.versions]
    out = Output(as_json=json, quiet=quiet)
    out.result(
        {"file": str(output), "size": size, "versions": versions},
        str(output),
        f"{size_text(size)}: {', '.join(versions)}",
    )


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle.")],
    to: Annotated[str | None, typer.Option("--to", metavar="SOURCE", help="The registry to store it in.")] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Store the deltas of a bundle in a registry, after checking the whole file.

    [dim]deltahub bundle import deltas.tar[/dim]
    """
    from deltahub.hub.hub import Hub
    from deltahub.registry.bundle import import_bundle

    registry = Hub.open().registry(to)
    deltas = import_bundle(file, registry)
    versions = [f"{registry.name}:{delta.name}@{version}" for delta in deltas for version in delta.versions]
    new = [f"{registry.name}:{delta.name}@{version}" for delta in deltas for version in delta.new]
    out = Output(as_json=json, quiet=quiet)
    out.result(
        {"versions": versions, "new": new},
        "\n".join(versions),
        f"{len(new)} of {len(versions)} are new, every byte checked.",
    )
