"""What the reference document says of a version's content, so that a list need not read its manifest."""

from __future__ import annotations

from typing import Final

from deltahub.checkpoint import BACKBONE
from deltahub.manifest import Manifest
from deltahub.naming import backbone_name

RECORD: Final = "backbone_record"


def summary_of(manifest: Manifest) -> dict[str, object]:
    """What a list shows of a version, and the sha256 of its record of the backbone, or None."""
    keys = ("delta_type", "backbone_class", "backbone_hash")
    known = {key: manifest.config[key] for key in keys if manifest.config.get(key)}
    known["backbone_checkpoint_name"] = backbone_name(manifest.config)
    metrics = {str(m["metric_type"]): m["metric_value"] for m in manifest.metrics}
    counts = {"size": manifest.size, "parameters": manifest.parameters["total"]}
    return {**known, **counts, "metrics": metrics, RECORD: record_of(manifest)}


def record_of(manifest: Manifest) -> str | None:
    """The sha256 of a delta's record of its backbone, which many deltas share; None if it has none."""
    return next((entry.sha256 for entry in manifest.files if entry.path == BACKBONE), None)
