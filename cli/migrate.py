"""Command `migrate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import exit_code
from .options import JsonOpt, PublishPickleOpt, QuietOpt, TagsOpt, UntrainedOpt, split_tags
from .output import Output, print_json, say
from .push import report_many

if TYPE_CHECKING:
    from deltahub.errors import Outcome
    from deltahub.migrate.candidate import Candidate


def migrate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="hf:NAMESPACE, the adapters of an organisation or user on a hub; mlflow:URI, those in an MLflow tracking store; "
            "or a folder: every folder below with a delta, such as wandb/ or the outputs of a trainer.",
        ),
    ],
    namespace: Annotated[
        str, typer.Option("--namespace", metavar="NAMESPACE", help="The namespace of the new deltas.")
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="SOURCE", help="The registry to publish in, its folder, or s3://bucket/prefix."),
    ] = None,
    tags: TagsOpt = None,
    message: Annotated[
        str, typer.Option("--message", "-m", help="Why these versions; by default where each came from.")
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only list what would be migrated under which name, and what would be refused; folders are checked, nothing is downloaded.",
        ),
    ] = False,
    allow_pickle: PublishPickleOpt = False,
    allow_untrained: UntrainedOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Publish the deltas of other places in a registry, as they are, with their tags, metrics and origin.

    A delta that the registry has already under its name, with the same digest, makes no new version, so that an interrupted migration can
    be repeated. A delta that cannot be published is named with the reason, and the others are published.

    [dim]deltahub migrate hf:acme --namespace acme[/dim]

    [dim]deltahub migrate mlflow:http://tracking.acme.com --namespace acme --to team[/dim]

    [dim]deltahub migrate ./wandb ./outputs --namespace acme --dry-run[/dim]
    """
    from deltahub.hub.hub import Hub
    from deltahub.migrate.migration import Migration
    from deltahub.migrate.sources import candidates_at

    out, hub = Output(as_json=json, quiet=quiet), Hub.open()
    migration = Migration(hub, namespace, to, split_tags(tags), message, allow_pickle, allow_untrained)
    candidates = [candidate for source in sources for candidate in candidates_at(hub, source)]
    if not candidates and not json:
        say(f"No delta found in {', '.join(sources)}.", err=True)
    if not dry_run:
        report_many([(it.address, result) for it, result in migration.run(candidates)], None, out, "origin")
        return
    _report_plan(list(zip(candidates, migration.plan(candidates), strict=True)), out)


def _report_plan(plan: Sequence[tuple[Candidate, Outcome[str]]], out: Output) -> None:
    """Print the name of each delta that would be migrated, and why others would not; the first refusal sets the exit code.

    Args:
        plan: each delta with its name, or the error that it would be refused with.
    """
    errors = [(candidate, name) for candidate, name in plan if isinstance(name, Exception)]
    if out.as_json:
        print_json(
            [
                {"origin": it.address, **({"error": str(name)} if isinstance(name, Exception) else {"name": name})}
                for it, name in plan
            ]
        )
    else:
        out.rows(("name", "origin"), [(name, it.address) for it, name in plan if isinstance(name, str)])
    for candidate, error in errors:
        say(f"Error: {candidate.address}: {error}", err=True)
    if errors:
        say(f"{len(plan) - len(errors)} of {len(plan)} would be migrated.", err=True)
        raise typer.Exit(exit_code(errors[0][1]))
