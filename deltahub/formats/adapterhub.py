"""Adapters of AdapterHub's `adapters` library: recognised, so that they are refused by their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from deltahub.errors import ConfigError

CONFIG: Final = "adapter_config.json"


def refuse(folder: Path) -> None:
    """Refuse a folder that the `adapters` library wrote; do nothing for any other.

    Raises:
        ConfigError: it holds such an adapter.
    """
    try:
        document = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if (
        not isinstance(document, dict)
        or "peft_type" in document
        or not isinstance(config := document.get("config"), dict)
    ):
        return
    kind = config.get("architecture") or "bottleneck adapter"
    msg = (
        f"{folder} holds an adapter of AdapterHub's adapters library ({kind}, for {document.get('model_class') or 'a model'}), which DeltaHub "
        "does not load. Load it with adapters: model.load_adapter(...)."
    )
    raise ConfigError(msg)
