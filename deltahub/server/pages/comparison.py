"""Comparison page of two versions of one or two deltas: config, metrics, tensors and norms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from deltahub.checkpoint.manifest import Manifest
from deltahub.reference import MAIN
from deltahub.registry.registry import Found
from deltahub.server.errors import Refusal
from deltahub.server.pages.layers import norms_of, weights_of
from deltahub.server.pages.lookups import repository_of, version_of
from deltahub.server.pages.plots import by_series, plot
from deltahub.server.pages.rendering import page

_PLOTS: Final = 12
_ROWS: Final = 500  # per table


@dataclass(frozen=True)
class Row:
    """A line of the comparison; a side without the name is None."""

    name: str
    left: Any
    right: Any

    @property
    def change(self) -> str:
        """``"added"``, ``"removed"``, ``"changed"`` or ``"same"``."""
        if self.left is None and self.right is not None:
            return "added"
        if self.right is None and self.left is not None:
            return "removed"
        return "same" if self.left == self.right else "changed"


def comparison(request: Request) -> Response:
    """Show the comparison of the versions in the query, or the form that asks for them."""
    references = {side: request.query_params.get(side, "").strip() for side in ("left", "right")}
    if not all(references.values()):
        return page(request, "compare.html", asked=references, left=None, right=None)
    left, right = (_version_at(request, references[side]) for side in ("left", "right"))
    tensors = _rows(_tensors(left.manifest), _tensors(right.manifest))
    changed = [row for row in tensors if row.change != "same"]
    weights = [weights_of(side.manifest) for side in (left, right)]
    return page(
        request,
        "compare.html",
        asked=references,
        left=left,
        right=right,
        same_bytes=all(weights) and len({entry.sha256 for entry in weights if entry}) == 1,
        config=[row for row in _rows(_config(left.manifest), _config(right.manifest)) if row.change != "same"],
        metrics=_rows(_metrics(left.manifest), _metrics(right.manifest)),
        tensors=changed[:_ROWS],
        more_tensors=max(0, len(changed) - _ROWS),
        same_tensors=len(tensors) - len(changed),
        **_norms(request, left, right),
    )


def _version_at(request: Request, text: str) -> Found:
    path, _, version = text.partition("@")
    if path.count("/") != 1:
        raise Refusal(400, f"{text!r} has no version. Expected a reference such as namespace/name@v3.")
    return version_of(repository_of(request, path), version or MAIN)


def _rows(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Row]:
    return [Row(name, left.get(name), right.get(name)) for name in sorted({*left, *right})]


def _config(manifest: Manifest) -> dict[str, Any]:
    """Return the config with flattened keys, without None values."""
    flat: dict[str, Any] = {}
    for key, value in manifest.config.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": content for inner, content in value.items() if inner != "test_result"})
        else:
            flat[key] = value
    return {key: value for key, value in flat.items() if value is not None and key != "format_version"}


def _metrics(manifest: Manifest) -> dict[str, Any]:
    return {str(metric.get("metric_type")): metric.get("metric_value") for metric in manifest.metrics}


def _tensors(manifest: Manifest) -> dict[str, str]:
    return {entry.name: f"{entry.dtype} {' × '.join(map(str, entry.shape)) or '1'}" for entry in manifest.tensors}


def _norms(request: Request, left: Found, right: Found) -> dict[str, Any]:
    """Return the plots and the table of norms."""
    sides = [norms_of(request, side) for side in (left, right)]
    reason = next((side.missing for side in sides if side.missing), "")
    if reason:
        return {"missing": reason, "plots_of": [], "norms": [], "more_norms": 0, "more_plots": 0}
    series = [by_series(side.modules) for side in sides]
    names = sorted({*series[0], *series[1]}, key=lambda name: -_highest([series[0].get(name), series[1].get(name)]))
    top = _highest(points for side in series for points in side.values())
    plots = [
        (
            name,
            plot(
                [(side, series[at].get(name, {})) for at, side in enumerate(("left", "right"))], compared=True, top=top
            ),
        )
        for name in names[:_PLOTS]
    ]
    table = _rows(*({norm.address: norm.norm for norm in side.modules} for side in sides))
    return {
        "missing": "",
        "plots_of": plots,
        "more_plots": max(0, len(names) - _PLOTS),
        "norms": table[:_ROWS],
        "more_norms": max(0, len(table) - _ROWS),
    }


def _highest(series: Iterable[Mapping[int, float] | None]) -> float:
    return max((norm for points in series for norm in (points or {}).values() if math.isfinite(norm)), default=0.0)
