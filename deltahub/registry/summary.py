"""What the reference document says of a version's content, so that a list need not read its manifest."""

from __future__ import annotations

from deltahub.manifest import Manifest
from deltahub.naming import backbone_name


def summary_of(manifest: Manifest) -> dict[str, object]:
    """What a list shows of a version."""
    keys = ("delta_type", "backbone_class", "backbone_hash")
    known = {key: manifest.config[key] for key in keys if manifest.config.get(key)}
    known["backbone_checkpoint_name"] = backbone_name(manifest.config)
    metrics = {str(m["metric_type"]): m["metric_value"] for m in manifest.metrics}
    return {**known, "size": manifest.size, "parameters": manifest.parameters["total"], "metrics": metrics}
