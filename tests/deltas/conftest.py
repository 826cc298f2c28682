"""What runs on every architecture takes long: the tests that are not slow run on BERT alone."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on another backbone as slow."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        if HERE in item.path.parents and parameters and parameters.params.get("backbone", "bert") != "bert":
            item.add_marker(pytest.mark.slow)
