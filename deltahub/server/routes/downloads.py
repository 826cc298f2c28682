"""Downloads of a commit's files, whole or by range: ``/namespace/name/resolve/revision/path``.

Bytes are streamed from the store. The last chunk of a whole file is held back until its digest is verified, so that damaged bytes
never arrive as a complete answer.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
from collections.abc import Iterator
from itertools import chain
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from deltahub.checkpoint.from_files import MANIFEST
from deltahub.checkpoint.manifest import FileEntry
from deltahub.errors import IntegrityError, NotFoundError
from deltahub.files.atomic import CHUNK
from deltahub.reference import Digest
from deltahub.server.counted_responses import WholeResponse, counted
from deltahub.server.errors import ENTRY_NOT_FOUND, Refusal
from deltahub.server.gating import require_content
from deltahub.server.git_attributes import DEFAULT_ENTRY
from deltahub.server.paths import REPOSITORY
from deltahub.server.repositories import is_delta, open_repository
from deltahub.server.routes.packs import manifest_offer, offer
from deltahub.server.state import State, state_of
from deltahub.server.upload_urls import DOWNLOAD
from deltahub.stores.base import DirectStore, object_key

DIRECT_FROM = 1 << 20  # bytes from which a file is fetched from the bucket itself, where the hub is set up so
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_AT_ONCE: Final = 2 << 20  # bytes in memory: each switch to a thread and back costs as much as reading them
_STREAMED: Final = 3 * CHUNK  # bytes in memory for a larger file: one block to check, one to send, one in transit
_REVALIDATE: Final = "private, no-cache"  # a branch may move


def resolve(request: Request) -> Response:
    """Serve a file, or with ``Range`` a part. The manifest of a delta is served too, though no list shows it.

    Raises:
        Refusal: the file does not exist, or the range is outside it.
    """
    repository = open_repository(request)
    require_content(request, repository)
    commit = repository.at(request.path_params["revision"])
    path = request.path_params["path"]
    entry = next((entry for entry in commit.files if entry.path == path), None)
    if entry is None and path == MANIFEST and is_delta(commit.manifest):  # stored as an object like any file
        entry = FileEntry(path, commit.manifest.digest.hex, len(commit.manifest.to_bytes()))
    manifest_headers = manifest_offer(repository.path, commit.id) if path == MANIFEST and commit.entry else {}
    if entry is None:
        missing_headers = {"X-Repo-Commit": commit.id, **manifest_headers}
        raise Refusal(
            404, f"{path} is not a file of {repository.path} at {commit.id}.", ENTRY_NOT_FOUND, missing_headers
        )
    elsewhere = direct_url(state_of(request), entry)
    is_large = path == MANIFEST or elsewhere is not None or repository.large_files(commit)(entry)
    etag = f'"{entry.sha256 if is_large else repository.state.git_oid(entry.sha256, entry.size)}"'
    linked = {"X-Linked-Size": str(entry.size), "X-Linked-Etag": etag} if is_large else {}
    headers = {
        "X-Repo-Commit": commit.id,
        "ETag": etag,
        **linked,
        "Accept-Ranges": "bytes",
        "Cache-Control": _REVALIDATE,
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(path.rpartition('/')[2], safe='')}",
    }
    if path == MANIFEST:
        headers |= offer(repository.path, commit.id, commit.manifest) | manifest_headers
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if elsewhere is not None:
        return RedirectResponse(elsewhere, 302, {**headers, "Cache-Control": "private, no-store"})
    if request.method == "HEAD":  # the size of the whole file, whatever range was requested
        return Response(headers={**headers, "Content-Length": str(entry.size)}, media_type=_media_type(path))
    span = _span(request, entry, etag)
    if span is None:
        return _answer(request, _checked(state_of(request), entry), 200, entry.size, headers, path)
    headers["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{entry.size}"
    return _answer(request, _pieces(state_of(request), entry, *span), 206, span[1] - span[0], headers, path)


def direct_url(state: State, entry: FileEntry) -> str | None:
    """Return a URL of the bucket's server with the bytes of a large file; None if the hub sends them itself."""
    store = state.registry.store
    if not state.settings.direct or entry.size < DIRECT_FROM or not isinstance(store, DirectStore):
        return None
    if entry.sha256 == DEFAULT_ENTRY.sha256:  # shown without being stored
        return None
    return store.presigned(object_key(entry.sha256), "GET", DOWNLOAD)


def whole(request: Request, entry: FileEntry) -> Response:
    """Serve a whole stored file."""
    return _answer(
        request, _checked(state_of(request), entry), 200, entry.size, {"ETag": f'"{entry.sha256}"'}, entry.path
    )


def _answer(
    request: Request, pieces: Iterator[bytes], status: int, size: int, headers: dict[str, str], path: str
) -> Response:
    headers["Content-Length"] = str(size)

    def make() -> Response:
        if size <= _AT_ONCE:
            return WholeResponse(b"".join(pieces), status, headers, _media_type(path))
        first = next(pieces)  # so that an unreadable file gets an error answer
        return StreamingResponse(chain([first], pieces), status, headers, _media_type(path))

    return counted(request, min(size, _STREAMED), make)


def _span(request: Request, entry: FileEntry, etag: str) -> tuple[int, int] | None:
    """Return the requested byte range (end exclusive); None for the whole file."""
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if not match or not (match[1] or match[2]) or request.headers.get("if-range", etag) != etag:
        return None  # also for several ranges: a client must accept the whole file
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or entry.size - 1) + 1, entry.size)
    else:
        start, end = max(entry.size - int(match[2]), 0), entry.size
    if start >= end:
        size = {"Content-Range": f"bytes */{entry.size}"}
        raise Refusal(416, f"The range is outside the file, which has {entry.size} bytes.", headers=size)
    return start, end


def _pieces(state: State, entry: FileEntry, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    try:
        yield from state.chunks(entry.sha256, start, end)
    except NotFoundError as error:
        raise _damaged(entry, "nothing") from error


def _checked(state: State, entry: FileEntry) -> Iterator[bytes]:
    """Yield all bytes of a file; the last chunk only if the digest matches."""
    digest, size, last_piece = hashlib.sha256(), 0, b""
    for piece in _pieces(state, entry):
        if last_piece:
            yield last_piece
        digest.update(piece)
        size += len(piece)
        last_piece = piece
    if digest.hexdigest() != entry.sha256 or size != entry.size:
        raise _damaged(entry, Digest.of_hex(digest.hexdigest()))
    if last_piece:
        yield last_piece


def _damaged(entry: FileEntry, digest: str) -> IntegrityError:
    return IntegrityError(f"The stored file {entry.path}", Digest.of_hex(entry.sha256), digest)


def _media_type(path: str) -> str:
    """Return a media type safe for browsers: text or JSON, never anything they would execute."""
    kind = mimetypes.guess_type(path)[0] or ""
    if path.endswith((".md", ".txt", ".yaml", ".yml", ".csv")):
        return "text/plain; charset=utf-8"
    return kind if kind == "application/json" else "application/octet-stream"


routes: Final = [
    Route(f"{REPOSITORY}/resolve/{{revision:part}}/{{path:rest}}", resolve, methods=["GET", "HEAD"]),
    Route(f"{REPOSITORY}/raw/{{revision:part}}/{{path:rest}}", resolve, methods=["GET", "HEAD"]),
]
