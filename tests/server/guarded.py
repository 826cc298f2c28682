"""A small application behind the guards of a hub, for tests of the guards alone."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from deltahub.errors import DeltaHubError
from deltahub.registry.registry import Registry
from deltahub.server.access import caller_of, require_admin, require_read, require_write
from deltahub.server.app import guards
from deltahub.server.errors import Refusal, answer_failure, answer_refusal
from deltahub.server.routes import health
from deltahub.server.settings import Settings
from deltahub.server.state import State
from deltahub.server.telemetry import Metrics, note
from deltahub.stores.base import Store


async def caller(request: Request) -> JSONResponse:
    current = caller_of(request)
    return JSONResponse({"name": current.name, "scope": current.scope})


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"received": len(await request.body())})


async def read(request: Request) -> PlainTextResponse:
    require_read(request, request.path_params["namespace"], private=request.path_params["kind"] == "private")
    return PlainTextResponse("read")


async def write(request: Request) -> PlainTextResponse:
    require_write(request, request.path_params["namespace"])
    note(request, repository=f"{request.path_params['namespace']}/x", commit="0" * 40)
    return PlainTextResponse("written")


async def administer(request: Request) -> PlainTextResponse:
    require_admin(request)
    return PlainTextResponse("done")


async def fail(request: Request) -> PlainTextResponse:
    raise ZeroDivisionError(f"with {request.headers.get('authorization')}")


def guarded(store: Store, settings: Settings | None = None) -> Starlette:
    """Routes that say who calls, that read, write and fail, behind all guards."""
    settings, metrics = settings or Settings(), Metrics()
    routes = [
        *health.routes,
        Route("/caller", caller),
        Route("/echo", echo, methods=["POST", "PUT"]),
        Route("/api/models/x/y/commit/main", echo, methods=["POST"]),
        Route("/x/y.git/info/lfs/objects/z", echo, methods=["PUT"]),
        Route("/read/{namespace}/{kind}", read),
        Route("/write/{namespace}", write, methods=["POST"]),
        Route("/admin", administer),
        Route("/fail", fail),
    ]
    app = Starlette(
        routes=routes,
        middleware=guards(store, settings, metrics),
        exception_handlers={Refusal: answer_refusal, DeltaHubError: answer_failure},
    )
    app.state.hub, app.state.metrics = State(Registry(store), settings), metrics
    app.state.readiness = health.Readiness(store)
    return app
