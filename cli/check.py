"""Command `check`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JsonOpt, OpenPickleOpt, QuietOpt
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from deltahub.link import Link
    from deltahub.reference import Reference


TargetArg = Annotated[str, typer.Argument(metavar="REF|FOLDER", help="A delta in any format, in a folder or a source.")]
BackboneOpt = Annotated[
    str, typer.Option("--backbone", metavar="BACKBONE", help="A folder, or a model in Hugging Face's cache.")
]
RecordOpt = Annotated[
    bool,
    typer.Option(
        "--record",
        help="Also record the backbone beside a delta of another library, so that it is refused on any other: in its "
        "folder, or as a new version in its source.",
    ),
]
DequantisedOpt = Annotated[
    bool,
    typer.Option(
        "--dequantised",
        help="Accept the backbone in another precision or quantisation than the recorded one, after comparing the weights.",
    ),
]


def check(
    target: TargetArg,
    backbone: BackboneOpt,
    record: RecordOpt = False,
    dequantised: DequantisedOpt = False,
    allow_pickle: OpenPickleOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Check whether a delta loads on a backbone: that each tensor has its place, and that it is the recorded backbone.

    The backbone is loaded with its weights, in the precision of its files.

    [dim]deltahub check acme/summaries --backbone ./llama[/dim]

    [dim]deltahub check ./peft-adapter --backbone ./llama --record[/dim]
    """
    from deltahub.auto import AutoDeltaModel
    from deltahub.checkpoint import checkpoint
    from deltahub.handle.recording import load_backbone, record_backbone
    from deltahub.hub.locating import locate, locate_exactly

    out = Output(as_json=json, quiet=quiet)
    folder, exact = locate_exactly(target)
    model = load_backbone(backbone)
    was_recorded = (folder / checkpoint.BACKBONE).is_file()
    reference = target
    if record and not was_recorded and exact is None:
        record_backbone(folder, model, allow_pickle=allow_pickle)
    elif record and not was_recorded:
        reference = _publish(target, exact, folder, model, allow_pickle=allow_pickle)
        folder = locate(reference)
    delta = AutoDeltaModel.from_finetuned(
        folder, backbone_model=model, allow_pickle=allow_pickle, check_hash="dequantised" if dequantised else True
    )
    compared = record or was_recorded
    data: dict[str, Any] = {
        "delta": reference,
        "delta_type": delta.config.delta_type,
        "backbone": backbone,
        "verified": compared,
    }
    known = (
        "is the recorded one, perhaps in another precision or quantisation" if dequantised else "is the recorded one"
    )
    fit = known if compared else "has the right names and shapes; the delta has no record to compare"
    out.result(
        data, reference, f"It loads on {backbone} as a delta of the type {delta.config.delta_type}; the backbone {fit}."
    )


def _publish(target: str, exact: Reference | Link | None, folder: Path, model: nn.Module, *, allow_pickle: bool) -> str:
    """Publish a delta with the record of its backbone as the next version; its tags stay.

    Args:
        target: the delta as the user named it, which may mean another version by now.
        exact: the version in `folder`.
    """
    from deltahub.files.atomic import scratch
    from deltahub.handle.recording import record_backbone
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference

    hub = Hub.open()
    if not isinstance(exact, Reference):
        raise typer.BadParameter(f"{target} is a link; pull it into a folder, and record the backbone there.")
    entry = hub.source(exact.source).document(exact.path).versions.get(str(exact.version))
    with scratch() as place:
        shutil.copytree(folder, place / "delta", ignore=shutil.ignore_patterns(".deltahub-*"))
        record_backbone(place / "delta", model, allow_pickle=allow_pickle)
        pushed = hub.push(
            place / "delta",
            str(exact.at(None)),
            tags=entry.tags if entry else (),
            message="Its backbone is recorded",
            allow_pickle=allow_pickle,
            allow_untrained=True,  # it is published already
        )
    return str(pushed.reference)
