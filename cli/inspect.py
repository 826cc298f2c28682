"""inspect."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOpt, QuietOpt
from .output import Output, print_json, size_text


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A backbone's folder, or a saved delta's.")],
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Look into a backbone or a delta without reading its weights.

    A backbone is shown as a tree, with the common names that addresses may use; a delta by its config and tensors.

    [dim]deltahub inspect ./bert-base-uncased[/dim]

    [dim]deltahub inspect ./ckpt[/dim]
    """
    from deltahub.checkpoint import is_checkpoint

    out = Output(as_json=json, quiet=quiet)
    if is_checkpoint(folder):
        _delta(folder, out)
    else:
        _backbone(folder, out)


def _delta(folder: Path, out: Output) -> None:
    from deltahub.checkpoint import describe

    manifest = describe(folder)
    if out.as_json:
        print_json({"digest": manifest.digest, **asdict(manifest)})
        return
    config = [(key, str(value)) for key, value in sorted(manifest.config.items()) if key != "metadata"]
    out.rows(("option", "value"), config, key=None)
    tensors = [(tensor.name, tensor.dtype, str(list(tensor.shape))) for tensor in manifest.tensors]
    out.rows(("tensor", "dtype", "shape"), tensors, key=None)
    if not out.quiet:
        count = manifest.parameters
        typer.echo(f"{count['total']:,} parameters, {size_text(manifest.size)}, {manifest.digest}", err=True)


def _backbone(folder: Path, out: Output) -> None:
    from deltahub.engine.skeleton import common_names, skeleton

    model = skeleton(folder)
    names = common_names(model)
    if out.as_json:
        print_json({"class": type(model).__name__, "common_names": names})
        return
    if not out.quiet:
        from deltahub.engine.visualize import Visualization

        Visualization(model).structure_graph(rootname=type(model).__name__)
    rows = [(common, ", ".join(real), str(count)) for common, (real, count) in names.items()]
    if rows:
        out.rows(("common name", "real name", "modules"), rows)
    else:
        typer.echo(f"{type(model).__name__} has no structure map: address its modules by real names.", err=True)
