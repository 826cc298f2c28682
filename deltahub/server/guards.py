"""What stands between the network and the routes, outermost first.

    AsSent            paths stay quoted                         paths.py
    SecurityHeaders   no answer is misused by a browser         shield.py
    Observing         access log, audit log, metrics            observing.py
    OwnNames          by which names the hub may be called      shield.py
    Limits            sizes of head and body, slow bodies       limits.py
    Browsers          a sign-in that lasts, errors as pages     pages/browsers.py
    OwnPages          no change for pages of other sites        shield.py
    Authentication    who calls, and how often                  authentication.py

All of it is plain ASGI, so that bodies and answers stream through.
"""

from __future__ import annotations

from starlette.middleware import Middleware

from deltahub.server.authentication import Authentication
from deltahub.server.limits import Limits
from deltahub.server.metrics import Metrics
from deltahub.server.observing import Observing
from deltahub.server.pages.browsers import Browsers
from deltahub.server.paths import AsSent
from deltahub.server.settings import Settings
from deltahub.server.shield import OwnNames, OwnPages, SecurityHeaders
from deltahub.stores.base import Store


def guards(store: Store, settings: Settings, metrics: Metrics) -> list[Middleware]:
    """All middleware of a hub.

    Args:
        store: where its tokens and sessions are.
        settings: its limits and rights.
        metrics: its counts.
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
