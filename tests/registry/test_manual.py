"""Every promise of docs/registry.md and docs/signing.md, and every fault of docs/faults.md, names tests that exist."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MANUALS = TESTS.parent / "docs"
RULE = "| ---"


@pytest.mark.parametrize("manual", ["registry.md", "signing.md", "faults.md"])
def test_every_promise_names_tests_that_exist(manual):
    lines = [*(MANUALS / manual).read_text("utf-8").splitlines(), ""]
    headings = {line for line, after in pairwise(lines) if after.startswith(RULE)}
    rows = [line for line in lines if line.startswith("|") and not line.startswith(RULE) and line not in headings]
    assert rows
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert any(f"def {test}(" in path.read_text("utf-8") for path in TESTS.rglob(file)), row
