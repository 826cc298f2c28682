"""The manual of the hub and its examples show commands and options that exist, and tests that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from deltahub_cli.main import build_app
from typer.main import get_command

from deltahub.server.telemetry import Metrics

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "docs/serve.md").read_text("utf-8")
SHOWN = [
    "docs/serve.md",
    "examples/serve/deltahub.service",
    "examples/serve/Containerfile",
    "examples/serve/compose.yaml",
]


def options_of(words: list[str]) -> set[str]:
    """The options of the command that words call."""
    command = get_command(build_app("serve"))
    for word in words:
        command = getattr(command, "commands", {}).get(word) or command
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("name", SHOWN)
def test_every_command_that_is_shown_has_the_options_that_are_shown(name):
    text = (ROOT / name).read_text("utf-8").replace("\\\n", " ").replace('", "', " ")
    found = re.findall(r"deltahub (serve\b[^`#)\n]*)", text)
    assert found
    for line in found:
        used = set(re.findall(r"--[a-z-]+", line))
        assert used <= options_of(line.split()[:3]), line


def test_every_option_of_the_table_exists_and_every_option_is_explained():
    table = MANUAL.partition("## Settings")[2].partition("\n#")[0]
    known = {option for option in options_of(["serve"]) if option.startswith("--")}
    used = set(re.findall(r"`(--[a-z-]+)`", table))
    assert used <= known
    assert known - used <= {"--open", "--json", "--quiet", "--help"}


def test_every_test_that_the_manual_names_exists():
    file, names = "", 0
    for named, test in re.findall(r"`([\w/]+\.py)?(?:::)?(test_\w+)?`", MANUAL):
        file = named or file
        if not (named or test):
            continue
        place = next(path for path in (ROOT / "tests/server" / file, ROOT / "tests" / file) if path.exists())
        assert not test or f"def {test}(" in place.read_text("utf-8"), (file, test)
        names += 1
    assert names > 30


def expressions() -> list[str]:
    """The expressions of the alerts and of the dashboard."""
    folder = ROOT / "examples/serve/monitoring"
    alerts = yaml.safe_load((folder / "alerts.yml").read_text("utf-8"))
    board = json.loads((folder / "grafana.json").read_text("utf-8"))
    rules = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    return rules + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_alerts_and_dashboard_use_metrics_that_the_hub_has():
    metrics = Metrics()
    metrics.count("GET", "/", 200, 0.1, 1, 1)
    served = {line.partition("{")[0].partition(" ")[0] for line in metrics.page()[0].decode().splitlines()}
    used = {name for text in expressions() for name in re.findall(r"\bdeltahub_\w+", text)}
    assert len(used) > 4
    assert used <= served
