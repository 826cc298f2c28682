"""Command `pull`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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


class Format(StrEnum):
    """An output format for a delta."""

    DELTAHUB = "deltahub"
    PEFT = "peft"


FormatOpt = Annotated[
    Format,
    typer.Option(
        "--format", help="Format to write into --to: the files as they are, or an adapter for PEFT, vLLM and LoRAX."
    ),
]
BackboneOpt = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="MODEL",
        help="With --format peft, where it asks for it: the backbone's folder, or its id in the cache.",
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
    copied = None if form is Format.PEFT else to
    with out.transfer("Pulling") as callbacks:
        pulled = hub.pull(references[0], to=copied, force=force, transfer=Transfer(*callbacks), trust=keys)
    if form is Format.PEFT and to is not None:
        _write_peft(out, pulled, to, backbone)
    else:
        _print_one(out, pulled)


def _check_export(form: Format, to: Path | None, backbone: str | None) -> None:
    """Refuse options that cannot be combined.

    Raises:
        BadParameter: the options cannot be combined.
    """
    if form is Format.PEFT and to is None:
        raise typer.BadParameter("--format peft writes a folder: name it with --to DIR.")
    if backbone is not None and form is not Format.PEFT:
        raise typer.BadParameter("--backbone is for --format peft. Leave it out.")


def _write_peft(out: Output, pulled: Pulled, to: Path, backbone: str | None) -> None:
    """Write a pulled delta as an adapter, and print how to load it."""
    from deltahub.formats.peft.export import WEIGHTS, export_peft, serving_notes

    folder = export_peft(pulled.folder, to, backbone=backbone)
    notes = serving_notes(folder)
    size = (folder / WEIGHTS).stat().st_size
    data = {
        "reference": str(pulled.reference),
        "version": pulled.reference.version,
        "digest": pulled.digest,
        "folder": str(folder),
        "size": size,
        "format": "peft",
        "notes": notes,
    }
    out.result(
        data,
        str(folder),
        f"{pulled.reference} for PEFT, {size_text(size)}",
        f'Load it with: PeftModel.from_pretrained(model, "{folder}")',
        *(notes or [f"Serve it with: vllm serve MODEL --enable-lora --lora-modules NAME={folder}"]),
    )


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
