"""Every command explains itself, and the README only shows commands that exist."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from deltahub_cli.errors import EXIT_CODES
from deltahub_cli.main import build_app
from typer.main import get_command

from deltahub import errors

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


@cache
def commands() -> dict[str, object]:
    """Every command by what is typed, e.g. ``"cache list"``."""
    return dict(below("", get_command(build_app())))


def below(name: str, command: object) -> Iterator[tuple[str, object]]:
    """The commands of a group, or the one command itself."""
    inner = getattr(command, "commands", {})
    if not inner or (command.invoke_without_command and name):
        yield name, command
    for key, value in inner.items():
        yield from below(f"{name} {key}".strip(), value)


@pytest.mark.parametrize("name", sorted(commands()))
def test_a_command_has_help_with_an_example(run, name):
    done = run(*name.split(), "--help")
    assert done.exit_code == 0
    assert f"deltahub {name}" in " ".join(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(commands()))
def test_the_rendered_help_shows_every_word_that_was_written(run, name, monkeypatch):
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    shown = re.sub(r"[\s│]+", "", run(*name.split(), "--help").stdout)
    written = commands()[name]
    shown_parameters = [parameter for parameter in written.params if not getattr(parameter, "hidden", False)]
    for text in (written.help, *(parameter.help for parameter in shown_parameters)):
        for word in re.sub(r"\[/?dim\]", "", text or "").replace("\\[", "[").split():
            assert word in shown


def test_the_help_of_push_and_pull_shows_how_a_delta_is_named(run, monkeypatch):
    for command in ("push", "pull"):
        assert "[source:]namespace/name" in run(command, "--help").stdout


def test_every_command_takes_json_and_quiet():
    for name, command in commands().items():
        assert {"--json", "--quiet"} <= {option for parameter in command.params for option in parameter.opts}, name


def test_the_help_documents_the_exit_codes(run):
    text = " ".join(run("--help").stdout.split())
    for code in sorted({code for _, code in EXIT_CODES} | {0, 130}):
        assert f"{code} " in text


def test_every_error_has_an_exit_code():
    def tree(kind):
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    for kind in tree(errors.DeltaHubError):
        assert any(issubclass(kind, known) for known, _ in EXIT_CODES)


def test_the_readme_shows_only_commands_and_options_that_exist():
    shown = re.findall(r"^(?:\$ )?deltahub ([a-z].*)$", README, re.MULTILINE)
    assert shown
    known = commands()
    for line in shown:
        words = line.split("#")[0].split()
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        assert name in known, line
        options = {option for parameter in known[name].params for option in parameter.opts}
        used = {word for word in words if word.startswith("--")}
        assert used <= options | {"--help"}, line
