"""Uploads of large files to signed URLs: whole, or in parts assembled at the end.

Bytes are first written to a file in the temporary folder, and stored once all have arrived and their digest matches the announced
one. A part is an object of its own, which any process of the hub can find; `deltahub.registry.uploads` keeps garbage collection
from removing it before the file is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.checkpoint.manifest import FileEntry
from deltahub.errors import IntegrityError, NotFoundError
from deltahub.files.atomic import scratch
from deltahub.registry import stamps, uploads
from deltahub.server.access import CALLER, Caller, caller_of
from deltahub.server.bodies import LARGE, blocks, with_json
from deltahub.server.errors import ENTRY_NOT_FOUND, Refusal
from deltahub.server.gating import require_content
from deltahub.server.repositories import open_repository
from deltahub.server.routes.downloads import whole
from deltahub.server.routes.lfs import LFS
from deltahub.server.state import State, state_of
from deltahub.server.tokens import Tokens
from deltahub.stores.base import DirectStore, object_key

_FACTS: Final = ("repository", "oid", "size", "token", "born", "action")


class _Spool:
    """A growing file and its digest."""

    def __init__(self, file: Path, most: int) -> None:
        self.file, self.size = file, 0
        self._most = most
        self._digest = hashlib.sha256()
        self._writer = file.open("xb")

    def feed(self, block: bytes) -> None:
        self.size += len(block)
        if self.size > self._most:
            raise Refusal(400, f"More than the {self._most} bytes came that were announced. Ask for a new address.")
        self._digest.update(block)
        self._writer.write(block)

    def close(self) -> None:
        self._writer.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _require(request: Request, action: str, *more: str) -> dict[str, str]:
    """Return the verified parameters of a signed URL, while its token and repository are valid.

    Raises:
        Refusal: the URL is not valid, is for something else, or has expired.
    """
    parameters, query = request.path_params, dict(request.query_params)
    facts = {name: query.get(name, "") for name in (*_FACTS, *more)}
    expected = {
        "repository": f"{parameters['namespace']}/{parameters['name']}",
        "oid": parameters["oid"],
        "action": action,
    }
    if "part" in parameters:
        expected["part"] = parameters["part"]
    state_of(request).signer.require(query, facts | expected)
    _require_rights(request, facts)
    return facts


def _require_rights(request: Request, facts: Mapping[str, str]) -> None:
    """Check that the caller for whom a URL was signed may still use it.

    Raises:
        Refusal: the token is no longer valid or lacks the permission, or the repository is gone or replaced.
    """
    request.scope[CALLER] = _signer_of(state_of(request), facts["token"])
    reads = facts["action"] == "download"
    repository = open_repository(request, write=not reads)
    if (repository.path, repository.born) != (facts["repository"], facts["born"]):
        raise Refusal(403, "The repository that this address was made for is gone. Ask for a new address.")
    if reads:
        require_content(request, repository)
    if reads and repository.holds(facts["oid"]) is None:
        raise Refusal(404, f"No version of {repository.path} has this file any more.", ENTRY_NOT_FOUND)


def _signer_of(state: State, token: str) -> Caller:
    if not token:
        return Caller(scope=state.settings.anonymous)
    signer = Tokens(state.registry.store).find(token)
    fault = signer.fault(stamps.now()) if signer else "this hub does not know it any more"
    if signer is None or fault:
        raise Refusal(403, f"The token that this address was made for is not valid: {fault}. Ask for a new address.")
    return signer.caller


@contextlib.asynccontextmanager
async def _received(request: Request, size: int) -> AsyncIterator[_Spool]:
    """Receive the body into a temporary file.

    Raises:
        Refusal: its size is not the announced one.
    """
    with scratch() as folder:
        spool = _Spool(folder / "upload", size)
        try:
            async for block in blocks(request):
                await run_in_threadpool(spool.feed, block)
        finally:
            spool.close()
        if spool.size != size:
            raise Refusal(400, f"{spool.size} bytes came, and {size} were announced. Upload it again.")
        yield spool


async def put_whole(request: Request) -> Response:
    """Receive a whole file.

    Raises:
        Refusal: its digest is not the announced one.
    """
    facts = await run_in_threadpool(_require, request, "upload")
    async with _received(request, int(facts["size"])) as spool:
        _require_digest(spool, facts["oid"])
        await run_in_threadpool(_keep, request, facts, spool)
    return Response(headers={"ETag": f'"{facts["oid"]}"'})


async def put_part(request: Request) -> Response:
    """Receive one part of a file."""
    facts = await run_in_threadpool(_require, request, "part", "part", "bytes")
    async with _received(request, int(facts["bytes"])) as spool:
        store, number = state_of(request).registry.store, int(facts["part"])
        part_key = (facts["repository"], facts["oid"], number)
        await run_in_threadpool(uploads.keep_part, store, *part_key, spool.sha256, spool.file, _author(request))
        return Response(headers={"ETag": f'"{spool.sha256}"'})


def _may_complete(request: Request) -> None:
    _require(request, "complete", "parts")


def complete(request: Request, body: dict[str, Any]) -> Response:
    """Assemble the parts of a file.

    Raises:
        Refusal: a part is missing, or the digest of the whole is not the announced one.
    """
    facts = _require(request, "complete", "parts")
    state, count = state_of(request), int(facts["parts"])
    parts = [_part(state, facts, number) for number in range(1, count + 1)]
    with scratch() as folder:
        spool = _Spool(folder / "upload", int(facts["size"]))
        try:
            for sha256 in parts:
                for chunk in state.registry.store.chunks(object_key(sha256)):
                    spool.feed(chunk)
        except NotFoundError as error:
            raise Refusal(409, "A part of the file is gone. Upload it again.") from error
        finally:
            spool.close()
        _require_digest(spool, facts["oid"])
        _keep(request, facts, spool)
    uploads.forget_parts(state.registry.store, facts["repository"], facts["oid"], parts)
    return JSONResponse({})


def _may_adopt(request: Request) -> None:
    _require(request, "adopt", "key")


def adopt(request: Request, _: dict[str, Any]) -> Response:
    """Take a file that the client sent to the bucket itself, once its bytes are verified.

    Raises:
        Refusal: nothing arrived, or other bytes than those announced.
    """
    facts = _require(request, "adopt", "key")
    store, size = state_of(request).registry.store, int(facts["size"])
    if not isinstance(store, DirectStore):
        raise Refusal(409, "The registry of this hub is no longer in a bucket that takes files. Ask for a new address.")
    try:
        uploads.keep_direct(store, facts["repository"], facts["oid"], size, facts["key"], _author(request))
    except NotFoundError as error:
        if (
            uploads.size_of(store, facts["repository"], facts["oid"]) != size
        ):  # else the answer to the first call was lost
            raise Refusal(404, "No file arrived at its address. Upload it again.") from error
    except IntegrityError as error:
        raise Refusal(400, str(error)) from error
    return JSONResponse({})


def _require_digest(spool: _Spool, oid: str) -> None:
    if spool.sha256 != oid:
        message = f"The bytes that came have the sha256 {spool.sha256}, not {oid} as announced. Upload the file again."
        raise Refusal(400, message)


def _keep(request: Request, facts: dict[str, str], spool: _Spool) -> None:
    store = state_of(request).registry.store
    uploads.keep(store, facts["repository"], facts["oid"], spool.file, _author(request))


def _author(request: Request) -> str:
    return caller_of(request).name or "anonymous"


def _part(state: State, facts: dict[str, str], number: int) -> str:
    sha256 = uploads.part(state.registry.store, facts["repository"], facts["oid"], number)
    if sha256 is None:
        raise Refusal(400, f"Part {number} of the file was not uploaded. Upload it, then complete the file again.")
    return sha256


def get_whole(request: Request) -> Response:
    """Serve a file of the repository at a URL from the batch call."""
    facts = _require(request, "download")
    return whole(request, FileEntry(facts["oid"], facts["oid"], int(facts["size"])))


routes: Final = [
    Route(f"{LFS}/objects/{{oid:part}}", put_whole, methods=["PUT"]),
    Route(f"{LFS}/objects/{{oid:part}}", get_whole, methods=["GET"]),
    Route(f"{LFS}/objects/{{oid:part}}/parts/{{part:part}}", put_part, methods=["PUT"]),
    Route(f"{LFS}/objects/{{oid:part}}/complete", with_json(complete, _may_complete, LARGE), methods=["POST"]),
    Route(f"{LFS}/objects/{{oid:part}}/adopt", with_json(adopt, _may_adopt), methods=["POST"]),
]
