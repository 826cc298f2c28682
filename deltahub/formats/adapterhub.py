"""Detection of adapters saved by AdapterHub's `adapters` library, to refuse them with a clear message."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from deltahub.checkpoint.checkpoint import LARGEST_CONFIG
from deltahub.errors import ConfigError, DeltaHubError
from deltahub.files.atomic import read_limited
from deltahub.files.documents import parse

CONFIG: Final = "adapter_config.json"


def refuse(folder: Path) -> None:
    """Refuse a folder written by the `adapters` library; do nothing for any other folder.

    Raises:
        ConfigError: the folder holds such an adapter.
    """
    try:
        document = parse(read_limited(folder / CONFIG, LARGEST_CONFIG))
    except (DeltaHubError, ValueError):
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
