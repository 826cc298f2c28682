"""The `deltahub` command."""

from __future__ import annotations

from typing import Annotated

import typer

from . import cache, inspect, listing, marks, transfer, verify
from .errors import EXIT_HELP, SentenceGroup

app = typer.Typer(
    name="deltahub",
    cls=SentenceGroup,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EXIT_HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"deltahub {version('deltahub')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")] = False,
) -> None:
    """Make deltas safe to keep, find and load: push, pull and check the small trained parts of models."""


app.command()(transfer.push)
app.command()(transfer.pull)
app.command("list")(listing.list_)
app.command()(listing.show)
app.command()(listing.log)
app.command()(marks.tag)
app.command()(marks.alias)
app.command()(verify.verify)
app.command()(inspect.inspect)
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Run the command line."""
    app()
