"""Command `pull`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltahub.formats.writing import Format

from .convert import FORMATS, BackboneOpt, print_exported
from .errors import exit_code
from .options import JsonOpt, QuietOpt
from .output import Output, print_json, say, size_text
from .sign import RequireOpt, TrustOpt, trusted

if TYPE_CHECKING:
    from deltahub.errors import DeltaHubError
    from deltahub.link import Link
    from deltahub.reference import Reference
    from deltahub.sources.base import Pulled


RefsArg = Annotated[
    list[str],
    typer.Argument(
        metavar="REF...", help="Deltas: [source:]namespace/name[@version, alias or sha256:...], or an https:// link."
    ),
]
ToOpt = Annotated[
    Path | None, typer.Option("--to", metavar="DIR", help="Also copy the files of one delta into this folder.")
]
FromOpt = Annotated[
    str | None,
    typer.Option("--from", metavar="SOURCE", help="A source, or a registry's folder or s3://bucket/prefix."),
]
ForceOpt = Annotated[
    bool,
    typer.Option(
        "--force", help="Fetch it again even if it is in the cache, and overwrite a delta in DIR that was never pushed."
    ),
]


FormatOpt = Annotated[
    Format,
    typer.Option(
        "--format", help=f"Format to write into --to; deltahub means the files as they are. One of {FORMATS}."
    ),
]


def pull(
    refs: RefsArg,
    to: ToOpt = None,
    source: FromOpt = None,
    force: ForceOpt = False,
    form: FormatOpt = Format.DELTAHUB,
    backbone: BackboneOpt = None,
    require: RequireOpt = False,
    trust: TrustOpt = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Bring deltas into the cache, every byte checked, and print their folders.

    Several are fetched at the same time; if one fails, the others are brought all the same.

    [dim]deltahub pull DeltaHub/sst2-t5-base[/dim]

    [dim]deltahub pull acme/sst2-bert@champion --to ./ckpt[/dim]

    [dim]deltahub pull acme/ner acme/sst2-bert --from s3://acme/deltas[/dim]

    [dim]deltahub pull acme/sst2-bert --format peft --to ./adapter[/dim]

    [dim]deltahub pull acme/sst2-bert --require-signature --trust acme.pub[/dim]

    [dim]deltahub pull https://example.org/deltas/ner.tar#sha256=3f9a...[/dim]
    """
    from deltahub.hub.hub import Hub
    from deltahub.hub.pull import Transfer
    from deltahub.link import parse_reference

    if to and len(refs) > 1:
        raise typer.BadParameter("--to takes the files of one delta. Pull them one by one, or leave it out.")
    _check_export(form, to, backbone)
    out = Output(as_json=json, quiet=quiet)
    hub = Hub.open()
    references = [_at(parse_reference(ref), source) for ref in refs]
    keys = trusted(require, trust, [reference.source for reference in references])
    if len(references) > 1:
        with out.transfer("Pulling") as callbacks:
            results = hub.pull_all(references, force=force, transfer=Transfer(*callbacks), trust=keys)
        _print_all(out, refs, results)
        return
    copied = to if form is Format.DELTAHUB else None
    with out.transfer("Pulling") as callbacks:
        pulled = hub.pull(references[0], to=copied, force=force, transfer=Transfer(*callbacks), trust=keys)
    if form is not Format.DELTAHUB and to is not None:
        _write(out, pulled, to, form, backbone)
    else:
        _print_one(out, pulled)


def _check_export(form: Format, to: Path | None, backbone: str | None) -> None:
    """Refuse options that cannot be combined.

    Raises:
        BadParameter: the options cannot be combined.
    """
    if form is not Format.DELTAHUB and to is None:
        msg = f"--format {form} writes a folder: name it with --to DIR."
        raise typer.BadParameter(msg)
    if backbone is not None and form is Format.DELTAHUB:
        raise typer.BadParameter("--backbone is for another --format, such as peft. Leave it out.")


def _write(out: Output, pulled: Pulled, to: Path, form: Format, backbone: str | None) -> None:
    """Write a pulled delta in another format, and print how to load it."""
    from deltahub.conversion.convert import convert

    facts = {
        "reference": str(pulled.reference),
        "version": pulled.reference.version,
        "digest": pulled.digest,
    }
    print_exported(out, convert(pulled.folder, to, form, backbone=backbone), facts)


def _print_one(out: Output, pulled: Pulled) -> None:
    """Print where a delta is, and how to load it."""
    out.result(
        _facts(pulled),
        str(pulled.folder),
        f"{pulled.reference}, {size_text(pulled.manifest.size)}, {pulled.digest.short}, every byte checked",
        f'Load it with: AutoDeltaModel.from_finetuned("{pulled.reference}", backbone_model=model)',
    )


def _at(reference: Reference | Link, source: str | None) -> Reference | Link:
    """Return a reference at a source.

    Raises:
        BadParameter: it is a link, or names another source.
    """
    from deltahub.reference import Reference

    if source is None:
        return reference
    if not isinstance(reference, Reference) or reference.source not in (None, source):
        raise typer.BadParameter(
            f"{reference} has a source already, and --from names {source}. Leave out one of the two."
        )
    return replace(reference, source=source)


def _facts(pulled: Pulled) -> dict[str, Any]:
    return {
        "reference": str(pulled.reference),
        "version": pulled.reference.version,
        "digest": pulled.digest,
        "folder": str(pulled.folder),
        "size": pulled.manifest.size,
    }


def _print_all(out: Output, refs: list[str], results: Sequence[Pulled | DeltaHubError]) -> None:
    """Print the results of several pulls; the first failure sets the exit code."""
    failed = [(ref, error) for ref, error in zip(refs, results, strict=True) if isinstance(error, Exception)]
    pulled = [result for result in results if not isinstance(result, Exception)]
    if out.as_json:
        print_json(
            [
                {"asked": ref, "error": str(result)}
                if isinstance(result, Exception)
                else {"asked": ref, **_facts(result)}
                for ref, result in zip(refs, results, strict=True)
            ]
        )
    elif pulled:
        rows = [
            (str(result.folder), str(result.reference), size_text(result.manifest.size), result.digest.short)
            for result in pulled
        ]
        out.rows(("folder", "reference", "size", "digest"), rows)
    for _, error in failed:
        say(f"Error: {error}", err=True)
    if failed:
        say(f"{len(pulled)} of {len(refs)} pulled.", err=True)
        raise typer.Exit(exit_code(failed[0][1]))
