"""Command `convert`."""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltahub.formats.writing import WRITERS, Format

from .combine import EnergyOpt, print_errors
from .options import JsonOpt, OpenPickleOpt, QuietOpt
from .output import Output, say, size_text

if TYPE_CHECKING:
    from deltahub.handle.exporting import Exported


class Precision(StrEnum):
    """The precisions of a dequantised model."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


FORMATS = f"{', '.join(form for form in Format if form in WRITERS)}, or merged: a model with the delta in its weights"
BackboneOpt = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="MODEL",
        help="The backbone's folder, or its id in the cache: for a delta of another library, for merged, --verify and --as-lora, and where a format asks for it.",
    ),
]
VerifyOpt = Annotated[
    bool,
    typer.Option("--verify", help="Load what was written, and compare its outputs on the backbone before saying done."),
]


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A folder in any format, a reference, or an https:// link.")
    ],
    to: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write: new, empty, or of the same format.")],
    form: Annotated[Format, typer.Option("--format", "-f", help=f"The format to write: {FORMATS}.")],
    backbone: BackboneOpt = None,
    verify: VerifyOpt = False,
    as_lora: Annotated[
        int | None,
        typer.Option(
            "--as-lora", metavar="RANK", help="Convert it to a LoRA of at most this rank first; the errors are printed."
        ),
    ] = None,
    energy: EnergyOpt = None,
    no_check_hash: Annotated[
        bool,
        typer.Option(
            "--no-check-hash",
            help="Use a backbone that is not the recorded one, such as the full precision of a quantised one.",
        ),
    ] = False,
    dequantise: Annotated[
        Precision | None,
        typer.Option(
            "--dequantise",
            metavar="DTYPE",
            help="With merged, on a quantised backbone: write a plain model of bfloat16, float16 or float32, and compare its outputs.",
        ),
    ] = None,
    allow_pickle: OpenPickleOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Write a delta in the format of another library, or one of another library in DeltaHub's.

    A delta that the format cannot hold is refused with the reason. docs/converting.md lists what each format holds.

    [dim]deltahub convert acme/sst2-bert ./adapter --format peft[/dim]

    [dim]deltahub convert ./peft-adapter ./delta --format deltahub --backbone ./llama --verify[/dim]

    [dim]deltahub convert acme/ner ./model --format merged --backbone ./bert --verify[/dim]

    [dim]deltahub convert acme/ner ./model --format merged --backbone ./bert-4bit --dequantise bfloat16[/dim]

    [dim]deltahub convert ./dora ./lora --format peft --as-lora 16 --backbone ./llama[/dim]
    """
    import torch

    from deltahub.conversion.convert import convert as compute

    out = Output(as_json=as_json, quiet=quiet)
    result = compute(
        source,
        to,
        form,
        backbone=backbone,
        verify=verify,
        as_lora=as_lora,
        energy=energy,
        check_hash=not no_check_hash,
        allow_pickle=allow_pickle,
        dequantise=None if dequantise is None else getattr(torch, dequantise),
    )
    print_exported(out, result)


def print_exported(out: Output, result: Exported, facts: dict[str, Any] | None = None) -> None:
    """Print a delta that was written in a format, with the errors of a computed LoRA and the comparison of outputs.

    Args:
        facts: further facts for `--json`.
    """
    notes, usage = _notes(result)
    comparison = result.comparison
    data: dict[str, Any] = {
        **(facts or {}),
        "folder": str(result.folder),
        "format": str(result.format),
        "size": result.size,
        "modules": [vars(change) for change in result.changes],
        "verified": vars(comparison) if comparison else None,
        "notes": notes,
    }
    out.result(data, str(result.folder), f"The format {result.format}, {size_text(result.size)}")
    if out.as_json or out.quiet:
        return
    print_errors(result.changes, "lost")
    if comparison:
        effect = "" if comparison.effect is None else f"; the delta changes them by {comparison.effect:.3g}"
        say(f"Verified: the outputs differ by {comparison.difference:.3g} at most{effect}.", err=True)
    for line in (*usage, *notes):
        say(line, err=True)


def _notes(result: Exported) -> tuple[list[str], list[str]]:
    """Return what a user should know about a folder, and how to load it."""
    if result.format is Format.MERGED:
        return [], [f'Load it with: AutoModel.from_pretrained("{result.folder}"), or the class of its backbone']
    if result.format is Format.DELTAHUB:
        return [], [f"Push it with: deltahub push {shlex.quote(str(result.folder))}"]
    if result.format is not Format.PEFT:
        return [], []
    from deltahub.formats.peft.export import CONFIG, serving_notes

    notes = serving_notes(result.folder)
    usage = [f'Load it with: PeftModel.from_pretrained(model, "{result.folder}")']
    if not notes:
        usage.append(
            f"Serve it with: vllm serve MODEL --enable-lora --lora-modules {shlex.quote(f'NAME={result.folder}')}"
        )
    elif json.loads((result.folder / CONFIG).read_bytes())["peft_type"] == "IA3" or "is DoRA" in notes[0]:
        usage.append("vLLM and LoRAX take LoRA: deltahub convert ... --as-lora RANK writes one, and prints its errors.")
    return notes, usage
