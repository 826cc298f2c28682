"""Prometheus metrics: requests, their duration, and bytes.

Several processes of a hub share their counters if `PROMETHEUS_MULTIPROC_DIR` names a folder before they start; `deltahub serve
--workers` sets it.
"""

from __future__ import annotations

import os
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)  # seconds
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """Counters of one application. Routes are labelled by their pattern, so that no repository name appears."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "deltahub_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "deltahub_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.received = Counter("deltahub_received_bytes", "Bytes of bodies that came in.", registry=self.registry)
        self.sent = Counter("deltahub_sent_bytes", "Bytes of bodies that went out.", registry=self.registry)
        self.active = Gauge(
            "deltahub_active_requests", "Requests under way.", registry=self.registry, multiprocess_mode="livesum"
        )

    def count(self, method: str, route: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count one request."""
        self.requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        self.received.inc(received)
        self.sent.inc(sent)

    def page(self) -> tuple[bytes, str]:
        """Return all metrics in Prometheus's text format, and its media type."""
        registry = self.registry
        if os.environ.get(SHARED):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
