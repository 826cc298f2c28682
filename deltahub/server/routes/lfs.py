"""Large files, uploaded before the commit that names them: the batch and verify calls of git-lfs.

For a file not yet in the repository, the answer holds signed URLs for its bytes: one, or one per part of a large file. The answer
never reveals whether another repository has the bytes.
"""

from __future__ import annotations

import math
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.checkpoint.manifest import FileEntry
from deltahub.registry import uploads
from deltahub.registry.direct_uploads import LARGEST, incoming_key
from deltahub.server.access import caller_of, repository_not_found
from deltahub.server.bodies import LARGE, text_field, with_json
from deltahub.server.errors import Refusal
from deltahub.server.gating import require_content
from deltahub.server.paths import REPOSITORY
from deltahub.server.repositories import Repository, may_change, open_repository
from deltahub.server.routes.downloads import direct_url
from deltahub.server.routes.operations import is_oid
from deltahub.server.state import State, state_of
from deltahub.server.upload_urls import DOWNLOAD, LIFETIME
from deltahub.stores.base import DirectStore

MULTIPART: Final = "multipart"
MULTIPART_FROM = 256 << 20  # bytes from which a file is sent in parts
PART = 32 << 20  # minimum bytes of a part
_MOST_PARTS: Final = 1000
_MOST_OBJECTS: Final = 1000  # per batch
LFS: Final = f"{REPOSITORY}.git/info/lfs"
_MEDIA: Final = "application/vnd.git-lfs+json"


def _may_ask(request: Request) -> None:
    """Check that the caller has any permission; the required one depends on the body."""
    if caller_of(request).scope == "none":
        raise repository_not_found(request, f"{request.path_params['namespace']}/{request.path_params['name']}")


def batch(request: Request, body: dict[str, Any]) -> Response:
    """Answer where to upload or download each file."""
    operation = text_field(body, "operation")
    if operation not in ("upload", "download"):
        raise Refusal(400, f"operation must be upload or download, got {operation[:40]!r}.")
    repository = open_repository(request, write=operation == "upload")
    if operation == "download":
        require_content(request, repository)
    objects, transfers = body.get("objects"), body.get("transfers") or ["basic"]
    if not isinstance(objects, list) or len(objects) > _MOST_OBJECTS or not isinstance(transfers, list):
        raise Refusal(400, f"A batch needs objects, a list of at most {_MOST_OBJECTS}.")
    if body.get("hash_algo", "sha256") != "sha256":
        raise Refusal(409, "This hub names files by their sha256. Use hash_algo sha256.")
    parted = MULTIPART in transfers and any(_size(item) >= MULTIPART_FROM for item in objects)
    answers = [_answer(request, repository, item, upload=operation == "upload", parted=parted) for item in objects]
    answer = {"transfer": MULTIPART if parted else "basic", "objects": answers, "hash_algo": "sha256"}
    return JSONResponse(answer, media_type=_MEDIA)


def _size(item: Any) -> int:
    size = item.get("size") if isinstance(item, dict) else None
    return size if isinstance(size, int) and not isinstance(size, bool) else -1


def _answer(request: Request, repository: Repository, item: Any, *, upload: bool, parted: bool) -> dict[str, Any]:
    oid, size = str(item.get("oid")) if isinstance(item, dict) else "", _size(item)
    if not is_oid(oid) or size < 0:
        raise Refusal(400, "Each object of a batch needs an oid of 64 hex digits, its sha256, and a size in bytes.")
    answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
    stored_size = repository.holds(oid)
    if stored_size is None and upload:
        stored_size = uploads.size_of(repository.state.registry.store, repository.path, oid)
    largest = repository.state.settings.max_file
    if upload and size > largest:
        return answer | _error(413, f"The file has {size:,} bytes, and this hub takes {largest:,} at most.")
    if stored_size is not None and stored_size != size:
        return answer | _error(422, f"The file with this sha256 has {stored_size} bytes, not {size}.")
    if stored_size is None and not upload:
        return answer | _error(404, "No version of this repository has a file with this sha256.")
    if stored_size is not None and upload:
        return answer
    actions = _Addresses(request, repository, oid, size)
    return answer | {"actions": actions.upload(parted=parted) if upload else actions.download()}


def direct_store(state: State, size: int) -> DirectStore | None:
    """Return the store, if clients are to send a file of this size to it themselves; None if they send it to the hub."""
    store = state.registry.store
    wanted = state.settings.direct and size <= LARGEST
    return store if wanted and isinstance(store, DirectStore) and store.takes_uploads else None


class _Addresses:
    """Signed URLs for one file."""

    def __init__(self, request: Request, repository: Repository, oid: str, size: int) -> None:
        self._state, self._oid, self._size = repository.state, oid, size
        self._signer = repository.state.signer
        self._lfs = f"{repository.state.base_url(request)}/{repository.path}.git/info/lfs"
        self._object = f"{self._lfs}/objects/{oid}"
        token = caller_of(request).token
        self._facts = {"repository": repository.path, "oid": oid, "size": str(size), "token": token}
        self._facts["born"] = repository.born

    def _signed_url(self, address: str, action: str, lifetime: int | None = None, **parameters: int | str) -> str:
        facts = {**self._facts, "action": action, **{name: str(value) for name, value in parameters.items()}}
        return self._signer.signed(f"{self._object}{address}", facts, lifetime)

    def download(self) -> dict[str, Any]:
        if elsewhere := direct_url(self._state, FileEntry(self._oid, self._oid, self._size)):
            return {"download": {"href": elsewhere}}
        return {"download": {"href": self._signed_url("", "download", DOWNLOAD)}}

    def upload(self, *, parted: bool) -> dict[str, Any]:
        if (store := direct_store(self._state, self._size)) is not None:
            key = incoming_key()
            href = store.presigned(key, "PUT", LIFETIME)
            return {"upload": {"href": href}, "verify": {"href": self._signed_url("/adopt", "adopt", key=key)}}
        verify = {"href": f"{self._lfs}/verify"}
        if not parted or self._size < MULTIPART_FROM:
            return {"upload": {"href": self._signed_url("", "upload")}, "verify": verify}
        part = max(PART, math.ceil(self._size / _MOST_PARTS))
        count = math.ceil(self._size / part)
        header = {"chunk_size": str(part)}
        for number in range(1, count + 1):
            size = min(part, self._size - (number - 1) * part)
            header[str(number)] = self._signed_url(f"/parts/{number}", "part", part=number, bytes=size)
        return {
            "upload": {"href": self._signed_url("/complete", "complete", parts=count), "header": header},
            "verify": verify,
        }


def _error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def verify(request: Request, body: dict[str, Any]) -> Response:
    """Answer whether a file has been uploaded.

    Raises:
        Refusal: it has not, or its size differs.
    """
    repository = open_repository(request, write=True)
    oid = text_field(body, "oid")
    if not is_oid(oid):
        raise Refusal(400, "oid must be 64 hex digits, the sha256 of the file.")
    size = uploads.size_of(state_of(request).registry.store, repository.path, oid)
    size = repository.holds(oid) if size is None else size
    if size is None or size != body.get("size"):
        raise Refusal(
            404, f"No file with the sha256 {oid} and {body.get('size')} bytes was uploaded to {repository.path}."
        )
    return JSONResponse({})


routes: Final = [
    Route(f"{LFS}/objects/batch", with_json(batch, _may_ask, LARGE), methods=["POST"]),
    Route(f"{LFS}/verify", with_json(verify, may_change), methods=["POST"]),
]
