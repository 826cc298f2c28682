"""The ASGI application: all routes over one registry.

The middleware stack, outermost first:

    RawPaths             keeps paths quoted                        paths.py
    SecurityHeaders      headers against misuse by browsers        csrf.py
    TelemetryMiddleware  access log, audit log, metrics            telemetry.py
    HostAllowList        allow-list of host names                  csrf.py
    Limits               sizes of head and body, slow bodies       limits.py
    Browsers             session cookies, errors as pages          pages/browsers.py
    CsrfProtection       CSRF protection                           csrf.py
    Authentication       caller and rate limit                     authentication.py

All are plain ASGI, so that bodies and responses are streamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from threading import Event, Thread
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from deltahub.errors import DeltaHubError
from deltahub.registry.registry import Registry
from deltahub.server.authentication import Authentication
from deltahub.server.csrf import CsrfProtection, HostAllowList, SecurityHeaders
from deltahub.server.deliveries import Dispatcher
from deltahub.server.descriptors import AcceptErrors
from deltahub.server.errors import Refusal, answer_failure, answer_http, answer_refusal
from deltahub.server.limits import Limits
from deltahub.server.pages.browsers import Browsers
from deltahub.server.pages.routes import routes as page_routes
from deltahub.server.paths import RawPaths
from deltahub.server.routes import api, health
from deltahub.server.settings import Settings
from deltahub.server.state import State
from deltahub.server.telemetry import Metrics, TelemetryMiddleware
from deltahub.stores.base import Store

_EVERY: Final = 5.0  # seconds between two looks for events


def guards(store: Store, settings: Settings, metrics: Metrics) -> list[Middleware]:
    """Return all middleware of a hub.

    Args:
        store: holds its tokens and sessions.
        settings: its limits and permissions.
        metrics: its counters.
    """
    return [
        Middleware(RawPaths),
        Middleware(SecurityHeaders),
        Middleware(TelemetryMiddleware, metrics),
        Middleware(HostAllowList, settings),
        Middleware(Limits, settings),
        Middleware(Browsers),
        Middleware(CsrfProtection, settings),
        Middleware(Authentication, store, settings),
    ]


def build_app(registry: Registry, settings: Settings | None = None, catalogue: str | None = None) -> Starlette:
    """Build the ASGI application that serves a registry.

    Args:
        registry: the registry to serve. Several processes may serve the same one.
        settings: of the server; the defaults are safe on a personal machine.
        catalogue: location of a database for the catalogue; None for an SQLite file.
    """
    settings = settings or Settings()
    metrics = Metrics()
    app = Starlette(
        routes=[*health.routes, *api.routes, *page_routes],
        lifespan=_begin,
        middleware=guards(registry.store, settings, metrics),
        exception_handlers={
            Refusal: answer_refusal,
            DeltaHubError: answer_failure,
            HTTPException: answer_http,
        },
    )
    app.state.hub = State(registry, settings, catalogue)
    app.state.metrics = metrics
    app.state.readiness = health.Readiness(registry.store)
    return app


@contextlib.asynccontextmanager
async def _begin(app: Starlette) -> AsyncIterator[None]:
    """Shorten log messages about connections that cannot be accepted, and start indexing for search.

    The index is refreshed in the background, so that the first visitor waits little or not at all.
    """
    asyncio.get_running_loop().set_exception_handler(AcceptErrors())
    Thread(target=_index, args=[app.state.hub], daemon=True, name="index").start()
    end = Event()
    Thread(target=_deliver, args=[app.state.hub, end], daemon=True, name="webhooks").start()
    yield
    end.set()


def _deliver(hub: State, end: Event) -> None:
    """Send events to webhooks until the hub ends; what is not sent then is sent after the next start."""
    dispatcher = Dispatcher(hub.registry, private=hub.settings.private_webhooks)
    while not end.wait(_EVERY):
        try:
            dispatcher.run()
        except DeltaHubError as error:
            logging.getLogger(__name__).warning("Webhooks wait: %s", error)


def _index(hub: State) -> None:
    try:
        hub.index.refresh()
    except DeltaHubError as error:
        logging.getLogger(__name__).warning("The search index waits for the first visitor: %s", error)
