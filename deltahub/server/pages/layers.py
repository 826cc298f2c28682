"""The layers page: the change of each module as a plot over the blocks, and as a table."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from deltahub.checkpoint.checkpoint import WEIGHTS
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import CheckpointError, IntegrityError, NotFoundError
from deltahub.files.sized_cache import SizedCache
from deltahub.registry.registry import Found
from deltahub.server.pages.lookups import content_of, repository_of, version_of
from deltahub.server.pages.norms import ModuleNorm, module_norms
from deltahub.server.pages.plots import by_series, plot
from deltahub.server.pages.rendering import page, size
from deltahub.server.state import state_of

LARGEST: Final = 64 << 20  # bytes of weights to read for a plot
LINES: Final = 8  # per plot; the others are in the table
_ROWS: Final = 2000  # of the table
_KEPT: Final = 32 << 20  # bytes of cached norms
_LONGEST_HEADER: Final = 4 << 20  # bytes of a safetensors header: about 30,000 tensors
_TURN: Final = "-/norms"  # not a valid repository name

Handler = Callable[[Request], Response]
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class Norms:
    """The norms of a version.

    Attributes:
        modules: sorted by address.
        missing: why there are none, as a sentence.
    """

    modules: tuple[ModuleNorm, ...] = ()
    missing: str = ""


# Keyed by the digests of the weights and of the manifest, which contains the scale.
_NORMS: Final[SizedCache[tuple[str, str], Norms]] = SizedCache(_KEPT, lambda norms: 1000 + 500 * len(norms.modules))


def one_at_a_time(handler: Handler) -> Endpoint:
    """Return an endpoint that reads norms for one request at a time; waiting takes no thread."""

    async def endpoint(request: Request) -> Response:
        async with state_of(request).repository_locks.of(_TURN):
            return await run_in_threadpool(handler, request)

    return endpoint


def layers(request: Request) -> Response:
    """Show the layers of a version."""
    repository = repository_of(request)
    delta = version_of(repository, request.path_params["revision"])
    norms = norms_of(request, delta)
    series = by_series(norms.modules)
    largest = sorted(series, key=lambda name: -max(series[name].values(), default=0.0))[:LINES]
    drawn_series = [name for name in series if name in largest]
    return page(
        request,
        "layers.html",
        document=repository.document,
        found=delta,
        private=repository.private,
        norms=norms,
        plot=plot([(name, series[name]) for name in drawn_series]) if drawn_series else None,
        left_out=len(series) - len(drawn_series),
        rows=norms.modules[:_ROWS],
        more=max(0, len(norms.modules) - _ROWS),
    )


def norms_of(request: Request, delta: Found) -> Norms:
    """Return the norms of a version, read once and cached. Callers must use `one_at_a_time`, which bounds the memory."""
    entry = weights_of(delta.manifest)
    if entry is None:
        return Norms(missing="This version has no safetensors file, so there are no norms to show.")
    if entry.size > LARGEST:
        limit = f"{size(entry.size)}; only up to {size(LARGEST)} are read for a plot"
        return Norms(missing=f"The weights have {limit}. Pull the delta to inspect it.")
    return _NORMS.get((entry.sha256, delta.entry.digest), lambda: _read_norms(request, delta, entry))


def weights_of(manifest: Manifest) -> FileEntry | None:
    """Return the file with the tensors; the largest if there are several."""
    files = [entry for entry in manifest.files if entry.path.endswith(".safetensors")]
    return next((entry for entry in files if entry.path == WEIGHTS), max(files, key=lambda f: f.size, default=None))


def _read_norms(request: Request, delta: Found, entry: FileEntry) -> Norms:
    try:
        if (header := int.from_bytes(state_of(request).read(entry, 0, min(entry.size, 8)), "little")) > _LONGEST_HEADER:
            limit = f"The safetensors header has {size(header)}; only up to {size(_LONGEST_HEADER)} are read for a plot"
            return Norms(missing=f"{limit}. Pull the delta to inspect it.")
        return Norms(module_norms(content_of(request, entry), delta.manifest.config))
    except CheckpointError as error:
        return Norms(missing=str(error))
    except (IntegrityError, NotFoundError):
        return Norms(
            missing="The weights are damaged or missing. Ask the administrator of this hub to run `deltahub verify --repair`."
        )
