"""Errors become one sentence and an exit code; commands never catch them."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from deltahub import errors
from deltahub.text.visible import redacted, visible, without_secrets

from .output import print_json, say

USAGE: Final = 2
DAMAGED: Final = 5
STORAGE: Final = 6
INTERRUPTED: Final = 130

# The first class that an error is an instance of decides.
EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (errors.NotFoundError, 3),
    (errors.MissingFileError, 3),
    (errors.ConflictError, 4),
    (errors.IntegrityError, DAMAGED),
    (errors.FingerprintMismatch, DAMAGED),
    (errors.StorageError, STORAGE),
    (errors.ReferenceSyntaxError, USAGE),
    (errors.ConfigError, USAGE),
    (errors.DeltaHubError, 1),
)

EXIT_HELP = (
    "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 not found, 4 changed by somebody else, "
    "5 damaged or another backbone, 6 disk or store full, not writable or out of reach, 130 interrupted, 143 terminated."
)


def exit_code(error: errors.DeltaHubError) -> int:
    """What a command exits with when this goes wrong."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def escape_help(command: Any) -> None:
    """Keep square brackets, such as those of ``[source:]name``, in the help of a command and of those below it.

    Help is rendered as rich markup, in which only the ``[dim]`` of examples is meant as such.
    """
    for described in (command, *command.params):
        if described.help:
            described.help = re.sub(r"(?<!\\)\[(?!/?dim\])", r"\\[", described.help)
    for below in getattr(command, "commands", {}).values():
        escape_help(below)


def _sentence(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}. Check that place and its disk."


def _report(sentence: str, code: int, *, as_json: bool, debug: bool) -> NoReturn:
    """Print what went wrong, with `--json` also as JSON on stdout and with `--debug` after a traceback, and exit."""
    sentence = redacted(visible(sentence))
    if debug and (error := sys.exc_info()[1]):
        print_traceback(error)
    say(f"Error: {sentence}", err=True)
    if as_json:
        _print_failure(sentence, code)
    raise typer.Exit(code)


def _print_failure(sentence: str, code: int) -> None:
    with contextlib.suppress(OSError):  # a full disk behind stdout is what the sentence says
        print_json({"error": sentence, "exit_code": code})
        sys.stdout.flush()


class SentenceGroup(TyperGroup):
    """Runs a command, and prints what goes wrong as one sentence; `--debug` lets the traceback through."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        escape_help(self)

    def make_context(self, info_name: str | None, args: list[str], *others: Any, **kwargs: Any) -> Any:
        """Parse the options before a command, one of which, `--install-completion`, writes into the user's home."""
        as_json = "--json" in args
        try:
            with _usage_errors(as_json=as_json):
                return super().make_context(info_name, args, *others, **kwargs)
        except OSError as error:
            _report(_sentence(error), STORAGE, as_json=as_json, debug=False)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was chosen."""
        as_json = "--json" in ctx.args
        try:
            with _usage_errors(as_json=as_json):
                return super().invoke(ctx)
        except errors.DeltaHubError as error:
            _report(str(error), exit_code(error), as_json=as_json, debug=ctx.params.get("debug"))
        except BrokenPipeError:
            raise  # whoever read the output has seen enough: typer ends quietly
        except OSError as error:  # from a place that no command knows more about, such as a full disk behind `>`
            _report(_sentence(error), STORAGE, as_json=as_json, debug=ctx.params.get("debug"))
        except KeyboardInterrupt as error:
            say("Interrupted; nothing was left half done.", err=True)
            raise typer.Exit(INTERRUPTED) from error


@contextlib.contextmanager
def _usage_errors(*, as_json: bool) -> Iterator[None]:
    """Escape control characters in messages about wrong usage, which quote file names, and print them as JSON on stdout too if asked."""
    try:
        yield
    except Exception as error:
        if describe := getattr(error, "format_message", None):  # what rich prints of it, in colours
            text = redacted(visible(describe()))
            error.format_message = lambda: text  # type: ignore[attr-defined]
            if as_json:
                _print_failure(text, getattr(error, "exit_code", USAGE))
        raise


def print_traceback(error: BaseException) -> None:
    """Print where something went wrong on stderr, without the secrets in the addresses, headers and tokens it quotes."""
    say(without_secrets("".join(traceback.format_exception(error))).rstrip("\n"), err=True)
