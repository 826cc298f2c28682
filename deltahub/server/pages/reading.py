"""What a page shows of the registry, for those who may see it."""

from __future__ import annotations

import hashlib

from starlette.requests import Request

from deltahub.errors import IntegrityError
from deltahub.manifest import FileEntry
from deltahub.places import cache_home
from deltahub.reference import check_name
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.index import Index
from deltahub.registry.registry import Found
from deltahub.server.access import caller_of, repository_not_found, require_read
from deltahub.server.refusals import ENTRY_NOT_FOUND, Refusal
from deltahub.server.state import state_of
from deltahub.stores.base import object_key


def index_of(request: Request) -> Index:
    """The search index of the registry; it lies in this user's cache."""
    registry = state_of(request).registry
    place = hashlib.sha256(registry.store.url.encode()).hexdigest()[:16]
    return Index(cache_home() / "indexes" / f"{registry.name}-{place}.sqlite3", registry)


def hidden_from(request: Request) -> tuple[str, ...]:
    """The names of all deltas that the caller may not see."""
    caller = caller_of(request)
    private = (name for name, record in state_of(request).records.all().items() if record.private)
    return tuple(name for name in private if not caller.may_read(name.partition("/")[0], private=True))


def document_of(request: Request, path: str | None = None) -> ReferenceDocument:
    """The document of the delta that the address names.

    Args:
        path: another one, ``"namespace/name"``.

    Raises:
        Refusal: there is none that the caller may see.
        ReferenceSyntaxError: nothing can have this name.
    """
    if path is None:
        path = f"{request.path_params['namespace']}/{request.path_params['name']}"
    for part in path.split("/"):
        check_name(part)
    document = state_of(request).registry.read(path)[0]
    if document is None or not document.versions:
        raise repository_not_found(request, path)
    require_read(request, document.name.partition("/")[0], is_private(request, document.name), path)
    return document


def is_private(request: Request, path: str) -> bool:
    """Whether only those may see a delta whose token holds in its namespace."""
    record = state_of(request).records.find(path)
    return record is not None and record.private


def version_of(request: Request, document: ReferenceDocument, asked: str | None = None) -> Found:
    """A version of a delta with its manifest.

    Args:
        asked: a version, alias, branch or digest; by default the one in the address, or the newest.

    Raises:
        NotFoundError: there is no such version.
        IntegrityError: its manifest is damaged.
    """
    version = document.resolve(asked or request.path_params.get("revision"))
    return Found(document, version, state_of(request).manifest(document.versions[version].digest))


def file_of(found: Found, path: str) -> FileEntry:
    """A file of a version.

    Raises:
        Refusal: there is none of this name.
    """
    for entry in found.manifest.files:
        if entry.path == path:
            return entry
    raise Refusal(404, f"{found.document.name}@{found.version} has no file {path!r}.", ENTRY_NOT_FOUND)


def content_of(request: Request, entry: FileEntry) -> bytes:
    """The bytes of a file, checked; ask for its size before.

    Raises:
        NotFoundError: they are gone.
        IntegrityError: they are not those that were pushed.
    """
    data = state_of(request).registry.store.read(object_key(entry.sha256))
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        remedy = "Ask whoever runs this hub to run `deltahub verify --repair`."
        raise IntegrityError(entry.path, f"sha256:{entry.sha256}", f"sha256:{found}", remedy)
    return data
