"""The middleware stack, outermost first.

    AsSent            keeps paths quoted                        paths.py
    SecurityHeaders   headers against misuse by browsers        shield.py
    Observing         access log, audit log, metrics            observing.py
    OwnNames          allow-list of host names                  shield.py
    Limits            sizes of head and body, slow bodies       limits.py
    Browsers          session cookies, errors as pages          pages/browsers.py
    OwnPages          CSRF protection                           shield.py
    Authentication    caller and rate limit                     authentication.py

All are plain ASGI, so that bodies and responses are streamed.
"""

from __future__ import annotations

from starlette.middleware import Middleware

from deltahub.server.authentication import Authentication
from deltahub.server.csrf import OwnNames, OwnPages, SecurityHeaders
from deltahub.server.limits import Limits
from deltahub.server.metrics import Metrics
from deltahub.server.pages.browsers import Browsers
from deltahub.server.paths import AsSent
from deltahub.server.settings import Settings
from deltahub.server.telemetry import Observing
from deltahub.stores.base import Store


def guards(store: Store, settings: Settings, metrics: Metrics) -> list[Middleware]:
    """Return all middleware of a hub.

    Args:
        store: holds its tokens and sessions.
        settings: its limits and permissions.
        metrics: its counters.
    """
    return [
        Middleware(AsSent),
        Middleware(SecurityHeaders),
        Middleware(Observing, metrics),
        Middleware(OwnNames, settings),
        Middleware(Limits, settings),
        Middleware(Browsers),
        Middleware(OwnPages, settings),
        Middleware(Authentication, store, settings),
    ]
