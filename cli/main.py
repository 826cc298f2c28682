"""The `deltahub` command.

Only the module of the requested command is imported, so that every command starts fast.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Final

import typer

from deltahub.version import VERSION

from .errors import EXIT_HELP, SentenceGroup, print_traceback
from .output import VisibleStream, say

# Command to its module and function; None for a group of commands, the module's `app`.
_COMMANDS: Final[dict[str, tuple[str, str | None]]] = {
    "push": ("push", "push"),
    "migrate": ("migrate", "migrate"),
    "pull": ("pull", "pull"),
    "list": ("list", "list_"),
    "show": ("show", "show"),
    "log": ("show", "log"),
    "tag": ("tag", "tag"),
    "alias": ("tag", "alias"),
    "amend": ("amend", "amend"),
    "undo": ("tag", "undo"),
    "requests": ("approve", "requests"),
    "approve": ("approve", "approve"),
    "reject": ("approve", "reject"),
    "policy": ("policy", None),
    "rm": ("rm", "rm"),
    "rename": ("rename", "rename"),
    "gc": ("gc", "gc"),
    "retention": ("retention", "retention"),
    "lock": ("lock", "lock"),
    "sync": ("lock", "sync"),
    "convert": ("convert", "convert"),
    "copy": ("copy", "copy"),
    "bundle": ("bundle", None),
    "combine": ("combine", "combine"),
    "diff": ("diff", "diff"),
    "extract": ("extract", "extract"),
    "resize": ("resize", "resize"),
    "scale": ("scale", "scale"),
    "verify": ("verify", "verify"),
    "watch": ("watch", "watch"),
    "sign": ("sign", "sign"),
    "inspect": ("inspect", "inspect"),
    "check": ("check", "check"),
    "cache": ("cache", None),
    "registry": ("registry", None),
    "source": ("source", None),
    "serve": ("serve", None),
}


_TERMINATED: Final = 128 + signal.SIGTERM


def _version(is_requested: bool) -> None:
    if is_requested:
        say(f"deltahub {VERSION}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")] = False,
) -> None:
    """Make deltas safe to keep, find and load: push, pull and check the small trained parts of models."""


def build_app(*names: str) -> typer.Typer:
    """Create the command-line app.

    Args:
        names: the commands to include; by default all.
    """
    app = typer.Typer(
        name="deltahub",
        cls=SentenceGroup,
        callback=options,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        epilog=EXIT_HELP,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in names or _COMMANDS:
        module_name, function = _COMMANDS[name]
        module = import_module(f".{module_name}", __package__)
        if function:
            app.command(name)(getattr(module, function))
        else:
            app.add_typer(module.app, name=name)
    return app


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """Create the app with only the command in these arguments, or with all commands if there is none."""
    word = next((word for word in arguments if not word.startswith("-")), "")
    return build_app(*([word] if word in _COMMANDS else []))


def main() -> None:
    """Run the command line."""
    if sys.stderr is None:  # otherwise errors would be printed on stdout
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  (until the end)
    if sys.stdout is None:  # closed by the parent process: run the command anyway
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  (until the end)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not fail
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))  # so that staged files are deleted, as after Ctrl-C
    if sys.argv[1:] == ["--version"]:
        say(f"deltahub {VERSION}")
        return
    sys.stdout, sys.stderr = VisibleStream(sys.stdout), VisibleStream(sys.stderr)
    try:
        app_for(sys.argv[1:])()
    except Exception as error:  # noqa: BLE001  (any traceback may contain secrets)
        print_traceback(error)
        sys.exit(1)
