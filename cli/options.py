"""Options shared by several commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
RefArg = Annotated[
    str, typer.Argument(metavar="REF", help="A delta: [source:]namespace/name[@version, alias or sha256:...].")
]
FolderArg = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that save_finetuned wrote.")]
OpenPickleOpt = Annotated[
    bool, typer.Option("--allow-pickle", help="Open weights that are a pickle (.bin), as plain tensors only.")
]
PublishPickleOpt = Annotated[
    bool, typer.Option("--allow-pickle", help="Also publish weights that are a pickle (.bin); they are not opened.")
]
UntrainedOpt = Annotated[
    bool,
    typer.Option(
        "--allow-untrained",
        help="Also publish a delta that provably changes nothing, as before training (a LoRA with a zero matrix in every layer, an IA3 of ones, ...), or "
        "that has exactly the tensors of the one that its training was resumed from. docs/registry.md says what is judged.",
    ),
]
TagsOpt = Annotated[
    list[str] | None,
    typer.Option("--tags", "--tag", "-t", metavar="TAG", help="A label or key=value; may be repeated, takes commas."),
]
SourceOpt = Annotated[str | None, typer.Option("--source", metavar="NAME", help="The registry to look in.")]

ExpectOpt = Annotated[
    str | None,
    typer.Option(
        "--expect", metavar="VERSION", help="Only if the alias points to this version now; 'none' if nowhere."
    ),
]
ReasonOpt = Annotated[str, typer.Option("--message", "-m", help="The reason, for the log.")]


def expected(version: str) -> str | None:
    """Return the version given to `--expect`; None for "none", an alias that must not exist."""
    return None if version == "none" else version


def split_tags(tags: Sequence[str] | None) -> list[str]:
    """Return the tags of `--tags a,b --tags c`."""
    return [tag.strip() for text in tags or () for tag in text.split(",") if tag.strip()]


_BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def size_in_bytes(size: str, option: str) -> int:
    """Convert a size such as ``"10GB"`` to bytes.

    Args:
        option: the name of the option, for the message.

    Raises:
        BadParameter: the size is not valid.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([KMGT]?I?B)", size.upper())
    if match is None or match[2] not in _BYTES:
        msg = f"expected a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, such as 10GB; got {size!r}"
        raise typer.BadParameter(msg, param_hint=option)
    return int(float(match[1]) * _BYTES[match[2]])


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds(age: str, option: str) -> float:
    """Convert an age such as ``"30d"`` to seconds.

    Args:
        option: the name of the option, for the message.

    Raises:
        BadParameter: the age is not valid.
    """
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", age)
    if match is None:
        msg = f"expected a number and one of s, m, h, d, w, such as 30d; got {age!r}"
        raise typer.BadParameter(msg, param_hint=option)
    return int(match[1]) * _SECONDS[match[2]]
