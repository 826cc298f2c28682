"""Endpoints for liveness, readiness and metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from deltahub.errors import DeltaHubError
from deltahub.registry.hub_records import TOKENS
from deltahub.server.access import require_admin
from deltahub.server.errors import Refusal
from deltahub.server.state import state_of
from deltahub.server.telemetry import Metrics
from deltahub.stores.base import Store
from deltahub.stores.retry import READINESS_TIMEOUT

_BELIEVED: Final = 2.0  # TTL of an answer in seconds


async def alive(request: Request) -> Response:
    """Answer that the process is running."""
    return PlainTextResponse("alive\n")


class Readiness:
    """Readiness check of the hub's store, run by a single thread and cached briefly.

    Args:
        store: of the hub's registry.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "ready")
        self._answer: Future[bool] | None = None
        self._until = 0.0

    async def check(self) -> bool:
        """Return whether the store answered within the last seconds, or does so within the timeout."""
        now = time.monotonic()
        if self._answer is None or (self._answer.done() and self._until <= now):
            self._answer = self._thread.submit(self._ask)
            self._until = now + _BELIEVED
        try:
            async with asyncio.timeout(READINESS_TIMEOUT):
                return await asyncio.shield(asyncio.wrap_future(self._answer))
        except TimeoutError:
            return False

    def _ask(self) -> bool:
        try:
            self._store.read_tagged(f"{TOKENS.prefix}none.json")
        except (DeltaHubError, OSError) as error:
            logging.getLogger("deltahub.server").error("The registry is out of reach: %s", error)  # noqa: TRY400  (one line)
            return False
        return True


async def ready(request: Request) -> Response:
    """Answer whether the process can reach its registry.

    Raises:
        Refusal: it cannot.
    """
    readiness = request.app.state.readiness
    assert isinstance(readiness, Readiness)
    if not await readiness.check():
        raise Refusal(503, "The hub cannot reach its registry.", headers={"Retry-After": "5"})
    down = bool(state_of(request).index.failure)
    return PlainTextResponse("ready; the database of the catalogue is down\n" if down else "ready\n")


async def metrics(request: Request) -> Response:
    """Serve the metrics for Prometheus.

    Raises:
        Refusal: the caller may not see them.
    """
    if not state_of(request).settings.open_metrics:
        require_admin(request)
    counts = request.app.state.metrics
    assert isinstance(counts, Metrics)
    counts.catalogue_down.set(bool(state_of(request).index.failure))
    page, kind = counts.page()
    return Response(page, media_type=kind)


routes: Final = [Route("/healthz", alive), Route("/readyz", ready), Route("/metrics", metrics)]
