"""push and pull."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import FolderArg, JsonOpt, QuietOpt, RefArg, TagsOpt, split_tags
from .output import Output, size_text


def push(
    folder: FolderArg,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="namespace/name; made from task and backbone if left out.")
    ] = None,
    tags: TagsOpt = None,
    alias: Annotated[list[str] | None, typer.Option("--alias", "-a", help="A movable name to point here.")] = None,
    message: Annotated[str, typer.Option("--message", "-m", help="Why this version.")] = "",
    to: Annotated[str | None, typer.Option("--to", metavar="SOURCE", help="The registry to push to.")] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Publish a saved delta as a new version; the same content again is no new version.

    Every file is checked against the digests that were saved with it.

    [dim]deltahub push ./ckpt --tags sst2[/dim]

    [dim]deltahub push ./ckpt acme/sst2-bert --tags task=sst2,lang=en --alias champion -m "2 epochs"[/dim]

    [dim]deltahub push ./ckpt team:acme/sst2-bert[/dim]
    """
    from deltahub.checkpoint import BACKBONE, CARD, CONFIG, WEIGHTS
    from deltahub.hub import Hub
    from deltahub.registries import LOCAL

    out = Output(as_json=json, quiet=quiet)
    files = [folder / name for name in (CONFIG, WEIGHTS, BACKBONE, CARD)]  # a trainer's folder holds others too
    size = sum(path.stat().st_size for path in files if path.is_file())
    with out.progress("Pushing", size) as progress:
        pushed = Hub.open().push(
            folder, name, tags=split_tags(tags), aliases=alias or (), message=message, to=to, progress=progress
        )
    data = {
        "reference": str(pushed.reference),
        "version": pushed.reference.version,
        "digest": pushed.digest,
        "new": pushed.new,
        "size": pushed.size,
        "tags": pushed.tags,
    }
    named = pushed.reference.at(None)
    kind = "New version" if pushed.new else "Already there, its message unchanged" if message else "Already there"
    out.result(
        data,
        str(pushed.reference),
        f"{kind}, {size_text(pushed.size)}, {pushed.digest[:19]}, tags: {', '.join(pushed.tags) or 'none'}",
        f"Fetch it with: deltahub pull {named.path if named.source == LOCAL else named}",
    )


def pull(
    ref: RefArg,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Also copy the files into this folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch it again even if it is in the cache.")] = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Bring a delta into the cache, every byte checked, and print its folder.

    [dim]deltahub pull DeltaHub/sst2-t5-base[/dim]

    [dim]deltahub pull acme/sst2-bert@champion --to ./ckpt[/dim]
    """
    from deltahub.hub import Hub
    from deltahub.lockfile import active
    from deltahub.reference import Reference

    out = Output(as_json=json, quiet=quiet)
    hub = Hub.open()
    reference = Reference.parse(ref)
    total = None if active() else hub.resolve(reference).manifest.size  # what is locked may need no registry
    with out.progress("Pulling", total) as progress:
        pulled = hub.pull(reference, to=to, force=force, progress=progress)
    data = {
        "reference": str(pulled.reference),
        "version": pulled.reference.version,
        "digest": pulled.digest,
        "folder": str(pulled.folder),
        "size": pulled.manifest.size,
    }
    out.result(
        data,
        str(pulled.folder),
        f"{pulled.reference}, {size_text(pulled.manifest.size)}, {pulled.digest[:19]}, every byte checked",
        f'Load it with: AutoDeltaModel.from_finetuned("{pulled.reference}", backbone_model=model)',
    )
