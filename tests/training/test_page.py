"""The table of docs/training.md is the matrix that the tests run."""

from __future__ import annotations

import re
from pathlib import Path

from tests.training.matrix import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_page_has_a_column_for_every_kind_of_delta():
    header = next(line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| | `"))

    assert re.findall(r"`(\w+)`", header) == KINDS
