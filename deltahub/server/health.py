"""Whether the hub is alive and ready, and its counts."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from deltahub.errors import DeltaHubError
from deltahub.registry.hub_documents import TOKENS
from deltahub.server.access import require_admin
from deltahub.server.metrics import Metrics
from deltahub.server.refusals import Refusal
from deltahub.server.state import state_of

_PATIENCE: Final = 5.0  # seconds for the store to answer


async def alive(request: Request) -> Response:
    """The process runs."""
    return PlainTextResponse("alive\n")


async def ready(request: Request) -> Response:
    """The process can reach its registry.

    Raises:
        Refusal: it cannot, now.
    """
    store = state_of(request).registry.store
    try:
        async with asyncio.timeout(_PATIENCE):
            await asyncio.to_thread(store.read_tagged, f"{TOKENS.prefix}none.json")
    except (DeltaHubError, TimeoutError) as error:
        logging.getLogger("deltahub.server").error("The registry is out of reach: %s", error)  # noqa: TRY400  (one line)
        raise Refusal(503, "The hub cannot reach its registry.", headers={"Retry-After": "5"}) from error
    return PlainTextResponse("ready\n")


async def metrics(request: Request) -> Response:
    """The counts, for Prometheus.

    Raises:
        Refusal: the caller may not see them.
    """
    if not state_of(request).settings.open_metrics:
        require_admin(request)
    counts = request.app.state.metrics
    assert isinstance(counts, Metrics)
    page, kind = counts.page()
    return Response(page, media_type=kind)


routes: Final = [Route("/healthz", alive), Route("/readyz", ready), Route("/metrics", metrics)]
