"""Command `inspect`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JsonOpt, QuietOpt
from .output import Output, print_json, say, size_text

if TYPE_CHECKING:
    from torch import nn

    from deltahub.checkpoint.manifest import Manifest

SvgOpt = Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Save the backbone's tree as a picture.")]
HtmlOpt = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Save the backbone's tree as a page.")]
WebOpt = Annotated[bool, typer.Option("--web", help="Choose modules on a page, and print them for modified_modules.")]
PortOpt = Annotated[
    int | None, typer.Option("--port", help="The page's port; by default 8888, or any other if that is taken.")
]


def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A backbone's folder, or a saved delta's.")],
    svg: SvgOpt = None,
    html: HtmlOpt = None,
    web: WebOpt = False,
    port: PortOpt = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Inspect a backbone or a delta without reading its weights.

    A backbone is shown as a tree, with the common names usable in addresses; a delta by its config and tensors.

    [dim]deltahub inspect ./bert-base-uncased[/dim]

    [dim]deltahub inspect ./bert-base-uncased --web[/dim]

    [dim]deltahub inspect ./ckpt[/dim]
    """
    from deltahub.checkpoint.damaged import is_named_delta
    from deltahub.checkpoint.from_files import holds_delta
    from deltahub.errors import MissingFolderError

    out = Output(as_json=json, quiet=quiet)
    if port is not None and not web:
        raise typer.BadParameter("--port is the port of the page that --web opens; add --web.")
    if web and (svg or html):
        raise typer.BadParameter("--web prints what was chosen, --svg and --html save a picture: ask for one of them.")
    if not folder.is_dir():
        msg = (
            f"There is no folder {folder}. A delta that is not in a folder of yours is shown by: deltahub show {folder}"
        )
        raise MissingFolderError(msg)
    if holds_delta(folder) or (not (folder / "config.json").is_file() and is_named_delta(folder)):
        if svg or html or web:
            raise typer.BadParameter(f"{folder} is a delta; --svg, --html and --web need a backbone's folder.")
        inspect_delta(folder, out)
        return
    out.nothing(f"Building the modules of {folder / 'config.json'} without their weights ...")  # imports torch: seconds
    from deltahub.engine.skeleton import skeleton

    model = skeleton(folder)
    if web:
        _choose(model, port, out)
    elif svg or html:
        _save(model, svg, html, out)
    else:
        _backbone(model, out)


def inspect_delta(folder: Path, out: Output) -> None:
    """Print the config and the tensors of a saved delta."""
    from deltahub.checkpoint.checkpoint import BACKBONE
    from deltahub.checkpoint.foreign import has_unread
    from deltahub.checkpoint.from_files import describe

    manifest = describe(folder, allow_pickle=True)
    if out.as_json:
        print_json({"digest": manifest.digest, **asdict(manifest)})
        return
    config = [(key, str(value)) for key, value in sorted(manifest.config.items()) if key != "metadata"]
    out.rows(("option", "value"), config, key=None)
    tensors = [(tensor.name, tensor.dtype, str(list(tensor.shape))) for tensor in manifest.tensors]
    out.rows(("tensor", "dtype", "shape"), tensors, key=None)
    if not out.quiet:
        if (method := method_text(manifest.config)) != manifest.config.get("delta_type", method):
            say(f"method: {method}", err=True)
        if any(file.path == BACKBONE for file in manifest.files) and (text := quantisation_of(folder / BACKBONE)):
            say(f"quantisation of the backbone: {text}", err=True)
        count, fixed = manifest.parameters, fixed_count(manifest)
        total = "an unknown number of" if has_unread(manifest) else f"{count['total']:,}"  # a pickle is not opened
        text = f" ({fixed:,} of them fixed)" if fixed else ""
        say(f"{total} parameters{text}, {size_text(manifest.size)}, {manifest.digest}", err=True)


def method_text(config: Mapping[str, Any]) -> str:
    """Describe the method of a delta: its type with its variant, and the package that adds it if it is not built in."""
    from deltahub.checkpoint.description import method_title
    from deltahub.plugins.entry_points import DELTAS

    if "delta_package" not in config:
        return method_title(config)
    delta_type, package = str(config["delta_type"]), str(config["delta_package"])
    state = "installed" if DELTAS.find(delta_type, package) else "not installed here; loading needs it"
    return f"{delta_type} (of the package {package}, {state})"


def fixed_count(manifest: Manifest) -> int:
    """Return how many values of a delta are saved with it and never train."""
    from deltahub.checkpoint.description import fixed_values
    from deltahub.checkpoint.manifest import DELTA

    sizes = {tensor.name: math.prod(tensor.shape) for tensor in manifest.tensors}
    return fixed_values(manifest.config, sizes) if manifest.kind == DELTA else 0


def quantisation_of(record: Path) -> str:
    """Describe the quantisation of a backbone by its record in a file; empty for a dense one."""
    from deltahub.checkpoint.backbone_record import Fingerprint
    from deltahub.checkpoint.description import quantisation_text

    return quantisation_text(Fingerprint.from_bytes(record.read_bytes()))


def _backbone(model: nn.Module, out: Output) -> None:
    from deltahub.engine.skeleton import common_names

    names = common_names(model)
    if out.as_json:
        print_json({"class": type(model).__name__, "common_names": names})
        return
    if not out.quiet:
        from deltahub.engine.drawing.visualize import Visualization

        Visualization(model).structure_graph(rootname=type(model).__name__, counts=True)
    rows = [(common, ", ".join(real), str(count)) for common, (real, count) in names.items()]
    if rows:
        out.rows(("common name", "real name", "modules"), rows, wrap=True)
    else:
        say(f"{type(model).__name__} has no structure map: address its modules by real names.", err=True)


def _save(model: nn.Module, svg: Path | None, html: Path | None, out: Output) -> None:
    from deltahub.engine.drawing.visualize import Visualization

    picture = Visualization(model)
    saved = {}
    if svg:
        picture.save_svg(svg)
        saved["svg"] = str(svg)
    if html:
        picture.save_html(html)
        saved["html"] = str(html)
    out.result(saved, "\n".join(saved.values()))


def _choose(model: nn.Module, port: int | None, out: Output) -> None:
    import deltahub.deltas  # noqa: F401  (registers the delta types)
    from deltahub.handle.base import delta_classes
    from deltahub.picker.choosing import choose

    delta_types = sorted(delta_classes().items(), key=lambda item: item[0] != "lora")  # the first is the default
    deltas = {name: (kind, kind.config_class()) for name, kind in delta_types if kind.default_modified_modules}
    choice = choose(model, deltas, True if port is None else port)
    data = {"delta_type": choice.delta_type, "modified_modules": choice.addresses, "modules": choice.names}
    out.result(data, choice.line)
