"""The formats of `pull --format`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import Output, size_text

if TYPE_CHECKING:
    from deltahub.sources.base import Pulled


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


def check_export(form: Format, to: Path | None, backbone: str | None) -> None:
    """Refuse options that cannot be combined.

    Raises:
        BadParameter: the options cannot be combined.
    """
    if form is Format.PEFT and to is None:
        raise typer.BadParameter("--format peft writes a folder: name it with --to DIR.")
    if backbone is not None and form is not Format.PEFT:
        raise typer.BadParameter("--backbone is for --format peft. Leave it out.")


def write_peft(out: Output, pulled: Pulled, to: Path, backbone: str | None) -> None:
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
