"""The entries of a reference document: versions, tombstones of removed ones, and moves.

A version has a summary of its manifest, so that a list need not read the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deltahub.checkpoint.checkpoint import BACKBONE
from deltahub.checkpoint.default_name import backbone_name
from deltahub.checkpoint.description import method_title
from deltahub.checkpoint.manifest import FILES, Manifest
from deltahub.reference import DeltaPath, Digest

RECORD: Final = "backbone_record"
_RANKS: Final = ("lora_r", "r", "rank", "bottleneck_dim")  # keys of configs, DeltaHub's own first
_ALPHAS: Final = ("lora_alpha", "alpha")
_TARGETS: Final = ("modified_modules", "target_modules", "attn_matrices")
_MOST_TARGETS: Final = 100
PROMOTION_ACTIONS: Final = frozenset({"ask", "approve", "reject", "verify"})  # in the log
CARD_FACTS: Final = "card"  # the front matter of the card that came with a commit to a hub


def summary_of(manifest: Manifest) -> dict[str, object]:
    """Return the values that a list shows of a version, and the sha256 of its backbone record, or None."""
    keys = ("delta_type", "backbone_class", "backbone_hash")
    summary = {key: manifest.config[key] for key in keys if manifest.config.get(key)}
    summary["backbone_checkpoint_name"] = backbone_name(manifest.config)
    if manifest.kind == FILES:
        summary |= {"delta_type": _type_of(manifest.config), "format": manifest.config.get("format")}
    elif (title := method_title(manifest.config)) != manifest.config.get("delta_type"):
        summary["method"] = title
    metrics = {str(m["metric_type"]): m["metric_value"] for m in manifest.metrics}
    counts = {"size": manifest.size, "parameters": manifest.parameters["total"]}
    return {**summary, **counts, **_options(manifest.config), "metrics": metrics, RECORD: record_of(manifest)}


def _options(config: Mapping[str, Any]) -> dict[str, object]:
    """Return the rank, the scale and the target modules of a delta, as far as its config states them."""
    options = config.get("options", config)  # in the format of another library, the options are apart
    if not isinstance(options, Mapping):  # a manifest that another program made
        return {}
    found = {
        "rank": next((options[key] for key in _RANKS if isinstance(options.get(key), int)), None),
        "alpha": next((options[key] for key in _ALPHAS if isinstance(options.get(key), int | float)), None),
        "targets": next((options[key] for key in _TARGETS if isinstance(options.get(key), list | str)), None),
    }
    targets = found["targets"]
    if isinstance(targets, list):
        found["targets"] = [str(target) for target in targets[:_MOST_TARGETS]]
    return {key: value for key, value in found.items() if value}


def option_words(summary: Mapping[str, Any]) -> list[str]:
    """Return the options of a version as words to search and show: ``"rank=8"``, ``"targets=q_proj,v_proj"``."""
    values = {key: summary[key] for key in ("method", "rank", "alpha", "targets") if summary.get(key)}
    return [f"{key}={','.join(map(str, it)) if isinstance(it, list) else it}" for key, it in values.items()]


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


def _type_of(config: Mapping[str, Any]) -> str:
    """Return the type of a set of files, to show as the delta type: ``"lora"``, ``"peft lora"``, ``"transformers bert"``."""
    if "delta_type" in config:
        return str(config["delta_type"])
    method = config.get("peft_type") or config.get("method") or config.get("model_type") or ""
    return f"{config.get('format', FILES)} {str(method).lower()}".strip()


def record_of(manifest: Manifest) -> str | None:
    """Return the sha256 of a delta's backbone record, which many deltas share; None if it has none."""
    return next((entry.sha256 for entry in manifest.files if entry.path == BACKBONE), None)


def number(version: str) -> int:
    """Return the number of a version: 3 for ``"v3"``."""
    return int(version[1:])


def merged_tags(old: Iterable[str], new: Iterable[str]) -> tuple[str, ...]:
    """Return all tags, sorted; of several pairs with the same key only the last."""
    return tuple(sorted({tag[: tag.find("=") + 1] or tag: tag for tag in (*old, *new)}.values()))


@dataclass(frozen=True)
class Version:
    """One immutable version and its details.

    Attributes:
        digest: the digest of its manifest.
        time: when it was pushed, ISO 8601 in UTC.
        author: who pushed it.
        message: why it was pushed.
        tags: labels and key=value pairs, sorted.
        summary: the values that a list shows, so that a list need not read the manifest.
        parent: the version that it came from, if that is not the one numbered before it.
        card: Markdown that replaces the pushed card; None if it was not amended.
    """

    digest: Digest
    time: str
    author: str
    message: str = ""
    tags: tuple[str, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None
    card: str | None = None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Version:
        """Build the entry from its stored form."""
        return cls(**{**stored, "digest": Digest(stored["digest"]), "tags": tuple(stored["tags"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as it is stored, in types of JSON alone."""
        fields = {**vars(self), "digest": str(self.digest)}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Removed:
    """The tombstone of a removed version, so that its number is never reused.

    Attributes:
        digest: the digest of its manifest.
        time: when it was removed, ISO 8601 in UTC.
        author: who removed it.
        message: why it was removed.
        pushed_message: the message of its push.
    """

    digest: Digest
    time: str
    author: str
    message: str = ""
    pushed_message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the tombstone as it is stored, in types of JSON alone."""
        fields = {**vars(self), "digest": str(self.digest)}
        if not self.pushed_message:
            del fields["pushed_message"]
        return fields


@dataclass(frozen=True)
class Moving:
    """A pending rename.

    Attributes:
        to: the new name.
        over: the etag of the document that it replaces there; None if there is none.
        time: when it was decided, ISO 8601 in UTC.
        author: who decided it.
    """

    to: DeltaPath
    over: str | None
    time: str
    author: str

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Moving:
        """Build the rename from its stored form."""
        return cls(**{**stored, "to": DeltaPath(stored["to"])})


@dataclass(frozen=True)
class Move:
    """One entry of the log.

    Attributes:
        action: push, alias, unalias, undo, branch, tag, untag, remove, rename, amend, ask, approve, reject or verify.
        what: the version, alias, branch or tags concerned; for a rename, the new name.
        before: the former target of an alias or branch, the digest of a removed version, the old name, or the amended value.
        after: the new target, the digest of a pushed version, the tagged version, the new name, or the amendment.
        reason: why an alias was moved, or a move was asked for or rejected; empty if none was given.
        approved: who approved the move of an alias.
        request: the id that a client of a hub gave this change, so that it is made once even if it is sent twice.
    """

    time: str
    author: str
    action: str
    what: str
    before: str | None = None
    after: str | None = None
    reason: str = ""
    approved: tuple[str, ...] = ()
    request: str = ""

    @property
    def extended(self) -> bool:
        """Whether the entry has details that earlier releases cannot read."""
        return bool(self.reason or self.approved or self.request) or self.action in PROMOTION_ACTIONS

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Move:
        """Build the entry from its stored form."""
        return cls(
            stored["time"],
            stored["author"],
            stored["action"],
            stored["what"],
            stored["from"],
            stored["to"],
            stored.get("reason", ""),
            tuple(stored.get("approved", ())),
            stored.get("request", ""),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as it is stored, in types of JSON alone."""
        stored: dict[str, Any] = {
            "time": self.time,
            "author": self.author,
            "action": self.action,
            "what": self.what,
            "from": self.before,
            "to": self.after,
        }
        details = {"reason": self.reason, "approved": list(self.approved), "request": self.request}
        return {**stored, **{name: value for name, value in details.items() if value}}


@dataclass(frozen=True)
class MoveRequest:
    """A move of a protected alias that waits for approvals: from exactly one version to exactly one other.

    Attributes:
        alias: the alias to move.
        before: the version that it pointed to when the move was asked for; None if it did not exist.
        after: the version to point it to; None to remove it.
        time: when it was asked for, ISO 8601 in UTC.
        author: who asked.
        reason: why.
        rules: the sha256 of the rules that it was asked for under, 64 hex digits.
        approved: who approved it so far, in their order.
    """

    alias: str
    before: str | None
    after: str | None
    time: str
    author: str
    reason: str
    rules: str
    approved: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> MoveRequest:
        """Build the request from its stored form."""
        return cls(**{**stored, "approved": tuple(stored["approved"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the request as it is stored, in types of JSON alone."""
        return {**vars(self), "approved": list(self.approved)}
