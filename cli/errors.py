"""Conversion of errors to one sentence and an exit code; commands do not catch errors themselves."""

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

# The first matching class applies.
EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (errors.NotFoundError, 3),
    (errors.MissingFileError, 3),
    (errors.MissingFolderError, 3),
    (errors.ConflictError, 4),
    (errors.IntegrityError, DAMAGED),
    (errors.FingerprintMismatch, DAMAGED),
    (errors.ProbeError, DAMAGED),
    (errors.VerificationError, DAMAGED),
    (errors.StorageError, STORAGE),
    (errors.ReferenceSyntaxError, USAGE),
    (errors.ConfigError, USAGE),
    (errors.DeltaHubError, 1),
)

EXIT_HELP = (
    "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 not found, 4 changed concurrently, "
    "5 damaged or another backbone, 6 disk or store full, not writable or out of reach, 130 interrupted, 143 terminated."
)


def exit_code(error: errors.DeltaHubError) -> int:
    """Return the exit code of a command that fails with an error."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def escape_help(command: Any) -> None:
    """Escape square brackets, such as in ``[source:]name``, in the help of a command and its subcommands.

    Help is rendered as rich markup, of which only ``[dim]`` for examples is used.
    """
    for described in (command, *command.params):
        if described.help:
            described.help = re.sub(r"(?<!\\)\[(?!/?dim\])", r"\\[", described.help)
    for below in getattr(command, "commands", {}).values():
        escape_help(below)


def _sentence(error: OSError) -> str:
    suffix = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{suffix}. Check that place and its disk."


def _report(sentence: str, code: int, *, as_json: bool, debug: bool) -> NoReturn:
    """Print an error and exit; with `--json` print it also as JSON on stdout, with `--debug` after a traceback."""
    sentence = redacted(visible(sentence))
    if debug and (error := sys.exc_info()[1]):
        print_traceback(error)
    say(f"Error: {sentence}", err=True)
    if as_json:
        _print_failure(sentence, code)
    raise typer.Exit(code)


def _print_failure(sentence: str, code: int) -> None:
    with contextlib.suppress(OSError):  # if stdout is on a full disk, the sentence on stderr reports it
        print_json({"error": sentence, "exit_code": code})
        sys.stdout.flush()


class SentenceGroup(TyperGroup):
    """Command group that prints an error as one sentence; `--debug` also prints the traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        escape_help(self)

    def make_context(self, info_name: str | None, args: list[str], *others: Any, **kwargs: Any) -> Any:
        """Parse the options before a command; `--install-completion` writes into the user's home."""
        as_json = "--json" in args
        try:
            with _usage_errors(as_json=as_json):
                return super().make_context(info_name, args, *others, **kwargs)
        except OSError as error:
            _report(_sentence(error), STORAGE, as_json=as_json, debug=False)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        as_json = "--json" in ctx.args
        try:
            with _usage_errors(as_json=as_json):
                return super().invoke(ctx)
        except errors.DeltaHubError as error:
            _report(str(error), exit_code(error), as_json=as_json, debug=ctx.params.get("debug"))
        except BrokenPipeError:
            raise  # the reader of the output closed the pipe: typer exits quietly
        except OSError as error:  # not specific to a command, such as a full disk behind `>`
            _report(_sentence(error), STORAGE, as_json=as_json, debug=ctx.params.get("debug"))
        except KeyboardInterrupt as error:
            say("Interrupted; nothing was left half done.", err=True)
            raise typer.Exit(INTERRUPTED) from error


@contextlib.contextmanager
def _usage_errors(*, as_json: bool) -> Iterator[None]:
    """Escape control characters in usage errors, which may quote file names; with `as_json` print them also on stdout."""
    try:
        yield
    except Exception as error:
        if describe := getattr(error, "format_message", None):  # rich prints this, in colours
            text = redacted(visible(describe()))
            error.format_message = lambda: text  # type: ignore[attr-defined]
            if as_json:
                _print_failure(text, getattr(error, "exit_code", USAGE))
        raise


def print_traceback(error: BaseException) -> None:
    """Print a traceback on stderr, with secrets in quoted URLs, headers and tokens redacted."""
    say(without_secrets("".join(traceback.format_exception(error))).rstrip("\n"), err=True)
