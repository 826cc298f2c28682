"""How much a delta changes each module: a plot over the blocks, and all numbers as a table."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from deltahub.checkpoint import WEIGHTS
from deltahub.errors import CheckpointError, IntegrityError, NotFoundError
from deltahub.manifest import FileEntry, Manifest
from deltahub.registry.registry import Found
from deltahub.server.pages.drawing import by_series, plot
from deltahub.server.pages.norms import ModuleNorm, module_norms
from deltahub.server.pages.reading import content_of, repository_of, version_of
from deltahub.server.pages.rendering import page, size
from deltahub.server.state import state_of

LARGEST: Final = 64 << 20  # bytes of weights that are read for a plot
LINES: Final = 8  # in a plot; the others are in the table
_ROWS: Final = 2000  # of the table
_KEPT: Final = 256  # versions whose norms are kept
_TURN: Final = "-/norms"  # no repository is called so

Handler = Callable[[Request], Response]
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class Norms:
    """The norms of a version.

    Attributes:
        modules: in the order of their addresses.
        missing: why there are none, as a sentence.
    """

    modules: tuple[ModuleNorm, ...] = ()
    missing: str = ""


class NormCache:
    """Norms by the digest of the weights and the scale; one version is read at a time, so that memory stays bounded.

    The pages wait for their turn before they take a thread (`in_turn`), so that many who look at plots leave threads to all others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Norms] = OrderedDict()

    def norms(self, request: Request, found: Found) -> Norms:
        """The norms of a version."""
        entry = weights_of(found.manifest)
        if entry is None:
            return Norms(missing="This version holds no safetensors file, so there are no norms to show.")
        if entry.size > LARGEST:
            limit = f"{size(entry.size)}; up to {size(LARGEST)} are read for a plot"
            return Norms(missing=f"The weights have {limit}. Pull the delta to look at it.")
        key = (entry.sha256, found.entry.digest)
        with self._lock:
            if key not in self._known:
                self._known[key] = _read(request, found, entry)
            self._known.move_to_end(key)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return self._known[key]


_CACHE: Final = NormCache()


def in_turn(handler: Handler) -> Endpoint:
    """An endpoint that reads norms, one request after the other; who waits holds no thread."""

    async def endpoint(request: Request) -> Response:
        async with state_of(request).turns.of(_TURN):
            return await run_in_threadpool(handler, request)

    return endpoint


def layers(request: Request) -> Response:
    """The layers of one version."""
    repository = repository_of(request)
    found = version_of(repository, request.path_params["revision"])
    norms = norms_of(request, found)
    series = by_series(norms.modules)
    largest = sorted(series, key=lambda name: -max(series[name].values(), default=0.0))[:LINES]
    drawn = [name for name in series if name in largest]
    return page(
        request,
        "layers.html",
        document=repository.document,
        found=found,
        private=repository.private,
        norms=norms,
        plot=plot([(name, series[name]) for name in drawn]) if drawn else None,
        left_out=len(series) - len(drawn),
        rows=norms.modules[:_ROWS],
        more=max(0, len(norms.modules) - _ROWS),
    )


def norms_of(request: Request, found: Found) -> Norms:
    """The norms of a version, read once."""
    return _CACHE.norms(request, found)


def weights_of(manifest: Manifest) -> FileEntry | None:
    """The file with the tensors; the largest if there are several."""
    files = [entry for entry in manifest.files if entry.path.endswith(".safetensors")]
    return next((entry for entry in files if entry.path == WEIGHTS), max(files, key=lambda f: f.size, default=None))


def _read(request: Request, found: Found, entry: FileEntry) -> Norms:
    try:
        return Norms(module_norms(content_of(request, entry), found.manifest.config))
    except CheckpointError as error:
        return Norms(missing=str(error))
    except (IntegrityError, NotFoundError):
        return Norms(
            missing="The weights are damaged or gone. Ask whoever runs this hub to run `deltahub verify --repair`."
        )
