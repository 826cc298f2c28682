"""Where a config's sizes depend on each other in a way that its names do not tell."""

from __future__ import annotations

from typing import Any, Final

OVERRIDES: Final[dict[str, dict[str, Any]]] = {}
