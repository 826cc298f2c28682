"""The summary of a version in its reference document, so that a list need not read the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from deltahub.checkpoint.checkpoint import BACKBONE
from deltahub.checkpoint.default_name import backbone_name
from deltahub.checkpoint.manifest import FILES, Manifest

RECORD: Final = "backbone_record"
CARD_FACTS: Final = "card"  # the front matter of the card that came with a commit to a hub


def summary_of(manifest: Manifest) -> dict[str, object]:
    """Return the values that a list shows of a version, and the sha256 of its backbone record, or None."""
    keys = ("delta_type", "backbone_class", "backbone_hash")
    known = {key: manifest.config[key] for key in keys if manifest.config.get(key)}
    known["backbone_checkpoint_name"] = backbone_name(manifest.config)
    if manifest.kind == FILES:
        known |= {"delta_type": _what(manifest.config), "format": manifest.config.get("format")}
    metrics = {str(m["metric_type"]): m["metric_value"] for m in manifest.metrics}
    counts = {"size": manifest.size, "parameters": manifest.parameters["total"]}
    return {**known, **counts, "metrics": metrics, RECORD: record_of(manifest)}


def metrics_of(manifest: Manifest, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metrics of a version in the form of its manifest, with later amendments.

    Args:
        summary: the summary of the version; one without metrics, as from a hub, leaves those of the manifest.
    """
    now = summary.get("metrics")
    if not isinstance(now, Mapping):
        return [dict(metric) for metric in manifest.metrics]
    pushed = [{**m, "metric_value": now[m["metric_type"]]} for m in manifest.metrics if m["metric_type"] in now]
    names = {metric["metric_type"] for metric in pushed}
    return [*pushed, *({"metric_type": k, "metric_value": v} for k, v in now.items() if k not in names)]


def _what(config: Mapping[str, Any]) -> str:
    """Return the type of a set of files, to show as the delta type: ``"lora"``, ``"peft lora"``, ``"transformers bert"``."""
    if "delta_type" in config:
        return str(config["delta_type"])
    method = config.get("peft_type") or config.get("method") or config.get("model_type") or ""
    return f"{config.get('format', FILES)} {str(method).lower()}".strip()


def record_of(manifest: Manifest) -> str | None:
    """Return the sha256 of a delta's backbone record, which many deltas share; None if it has none."""
    return next((entry.sha256 for entry in manifest.files if entry.path == BACKBONE), None)
