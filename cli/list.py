"""Command `list`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JsonOpt, QuietOpt, SourceOpt, TagsOpt, split_tags
from .output import Output, print_json, size_text

if TYPE_CHECKING:
    from deltahub.checkpoint.backbone_fit import Tensors
    from deltahub.registry.search.conditions import Query
    from deltahub.registry.search.index import Listed

_DIGITS = 12  # of a commit
COLUMNS = ("time", "name", "size", "parameters")  # sort keys beside metrics
_SHOWN = 50  # default number of rows in a table


TypeOpt = Annotated[str | None, typer.Option("--type", help="lora, adapter, bitfit, ...")]
MetricOpt = Annotated[
    list[str] | None, typer.Option("--metric", metavar="COND", help="E.g. 'accuracy>0.9'; may be repeated.")
]
FitsOpt = Annotated[
    str | None,
    typer.Option(
        "--fits", metavar="BACKBONE", help="Only those for this backbone: a folder, or a model in Hugging Face's cache."
    ),
]
NearOpt = Annotated[bool, typer.Option("--near", help="With --fits: also those that do not fit, and why.")]
SortOpt = Annotated[str, typer.Option("--sort", metavar="KEY", help="time, name, size, parameters or a metric.")]
LimitOpt = Annotated[
    int | None,
    typer.Option("--limit", min=0, help=f"Maximum number of results; 0 for all. [default: {_SHOWN}, all as JSON]"),
]


def list_(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="Words that must all occur.")] = "",
    tag: TagsOpt = None,
    delta_type: TypeOpt = None,
    author: Annotated[str | None, typer.Option("--author", help="Who pushed it.")] = None,
    metric: MetricOpt = None,
    fits: FitsOpt = None,
    near: NearOpt = False,
    sort: SortOpt = "time",
    reverse: Annotated[bool, typer.Option("--reverse", help="Reverse the order.")] = False,
    source: SourceOpt = None,
    limit: LimitOpt = None,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Number of results to skip.")] = 0,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """List deltas, newest first unless sorted otherwise.

    [dim]deltahub list sst2 --type lora[/dim]

    [dim]deltahub list --tag task=sst2 --tag lang=en --json[/dim]

    [dim]deltahub list --metric 'accuracy>0.9' --sort accuracy --limit 20 --offset 20[/dim]

    [dim]deltahub list --fits ./bert-base-uncased[/dim]

    [dim]deltahub list --fits google-bert/bert-base-uncased --near --json[/dim]
    """
    from deltahub.hub.hub import Hub
    from deltahub.registry.metrics import Metric
    from deltahub.registry.search.conditions import Query, Search

    if near and fits is None:
        msg = "--near needs --fits BACKBONE."
        raise typer.BadParameter(msg, param_hint="--near")
    metrics = tuple(map(Metric.parse, metric or ()))
    search_query = Query(query, tuple(split_tags(tag)), delta_type, author, metrics, sort, reverse, near=near)
    backbone = _backbone(fits) if fits else None
    shown = limit if limit is not None else (0 if json or quiet else _SHOWN)
    out = Output(as_json=json, quiet=quiet)
    with out.counting("Indexing", "deltas") as report:
        entries, total = Hub.open().search(Search(search_query, shown or None, offset, backbone, report), source)
    if not total:
        _check_type(delta_type)
    if json:
        print_json([_data(entry) for entry in entries])
    elif entries:
        _print_table(out, entries, total, search_query, offset)
    elif total:
        out.nothing(f"There are {total:,}, so none from number {offset + 1:,} on. Use a smaller --offset.")
    else:
        out.nothing("No deltas found.", _looser(search_query, fits))


def _print_table(out: Output, entries: Sequence[Listed], total: int, query: Query, offset: int) -> None:
    """Print one page of the result, and on stderr how to see the rest.

    Args:
        total: the number of results on all pages.
        offset: the number of results before this page.
    """
    fit = ["fit"] if entries[0].fit else []
    columns = ("name", "version", *fit, "type", "metrics", "tags", "backbone", "size", "pushed")
    out.rows(columns, [_row(entry) for entry in entries])
    if (
        query.sort not in COLUMNS
        and not offset
        and not any(query.sort in entry.summary.get("metrics", {}) for entry in entries)
    ):
        out.nothing(f"No delta listed has the metric {query.sort!r} to sort by.")
    last = offset + len(entries)
    if total > len(entries):
        page = f"{offset + 1} to {last}" if offset else f"{len(entries)}"
        more = f"--offset {last} shows the next; " if last < total else ""
        out.nothing(f"{page} of {total:,}; {more}--limit 0 shows all.")


def _looser(query: Query, fits: str | None) -> str:
    """Return a hint for an empty result."""
    if fits:
        return (
            "To see the deltas for other backbones and why they do not fit: --near"
            if not query.near
            else "Use fewer conditions."
        )
    narrowed = query.text or query.tags or query.delta_type or query.author or query.metrics
    return "To list all: deltahub list" if narrowed else "Push one with: deltahub push ./ckpt"


def _check_type(delta_type: str | None) -> None:
    """Refuse a type that is unknown here and of which nothing was found; a registry may hold types of other packages.

    Raises:
        BadParameter: the type is unknown.
    """
    from deltahub.checkpoint.config import known_types
    from deltahub.plugins.entry_points import DELTAS
    from deltahub.text.suggestions import suggest

    if delta_type is None or delta_type in known_types():
        return
    if delta_type not in (types := {*known_types(), *DELTAS.usable(known_types())}):
        msg = f"unknown: {delta_type!r}; {suggest(delta_type, types)}"
        raise typer.BadParameter(msg, param_hint="--type")


def _backbone(text: str) -> Tensors:
    from deltahub.checkpoint.backbone_fit import backbone_folder, backbone_tensors

    return backbone_tensors(backbone_folder(text))


def _data(entry: Listed) -> dict[str, Any]:
    """Return a delta as JSON; with its fit only if a backbone was given."""
    data = {"reference": f"{entry.name}@{entry.version}", **asdict(entry)}
    if entry.fit is None:
        del data["fit"]
    return data


def _row(entry: Listed) -> tuple[str, ...]:
    """Return a delta as a row of the table."""
    aliases = sorted(alias for alias, version in entry.aliases.items() if version == entry.version)
    return (
        entry.name,
        " ".join([entry.version[:_DIGITS], *aliases]),
        *([f"{entry.fit.level}: {entry.fit.detail}"] if entry.fit else []),
        str(entry.summary.get("method") or entry.summary.get("delta_type", "")),
        metrics_text(entry.summary.get("metrics", {})),
        " ".join(entry.tags),
        str(entry.summary.get("backbone_checkpoint_name", "")),
        size_text(entry.summary["size"]) if "size" in entry.summary else "",
        entry.time[:10],
    )


def metrics_text(metrics: dict[str, Any]) -> str:
    """Format metrics for display: ``"accuracy=0.94 f1=0.9"``."""
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in metrics.items()
    )
