"""Every promise of docs/registry.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
MANUAL = TESTS.parent / "docs/registry.md"


def test_every_promise_names_tests_that_exist():
    rows = [line for line in MANUAL.read_text("utf-8").splitlines() if re.match(r"\| (?!promise|---)", line)]
    assert rows
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert any(f"def {test}(" in path.read_text("utf-8") for path in TESTS.rglob(file)), row
