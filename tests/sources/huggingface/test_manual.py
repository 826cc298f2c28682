"""Every test that docs/hub.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
MANUAL = Path(__file__).parents[3] / "docs/hub.md"


def test_every_promise_names_a_test_that_exists():
    written = "\n".join(path.read_text("utf-8") for path in HERE.glob("test_*.py"))
    named = re.findall(r"`(?:test_\w+\.py)?(?:::)?(test_\w+)`", MANUAL.read_text("utf-8"))
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in written] == []
