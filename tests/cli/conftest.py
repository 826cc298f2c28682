"""The command line, run in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltahub_cli.main import app_for
from typer.testing import CliRunner, Result

from tests.checkpoints import save_checkpoint


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run `deltahub` with arguments."""

    def invoke(*arguments: object) -> Result:
        words = list(map(str, arguments))
        return CliRunner().invoke(app_for(words), words)

    return invoke


@pytest.fixture
def run_json(run) -> Callable[..., Any]:
    """Run `deltahub` with arguments and `--json`, and read what it prints."""

    def read(*arguments: object) -> Any:
        result = run(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return read


@pytest.fixture
def ckpt(tmp_path) -> Path:
    """A saved delta."""
    return save_checkpoint(tmp_path / "ckpt")
