"""Endpoints that create, delete, move and hide repositories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.errors import ConflictError, InUseError, ReferenceSyntaxError
from deltahub.files.reserve import with_reserve
from deltahub.reference import DeltaPath, Reference
from deltahub.registry import uploads
from deltahub.registry.case_collisions import refuse_twin
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.purge import forget, reuse_name
from deltahub.registry.rename import rename
from deltahub.server.access import caller_of, require_write, require_writer
from deltahub.server.bodies import text_field, with_json
from deltahub.server.errors import NOT_SUPPORTED, Refusal
from deltahub.server.gating import AccessRequests
from deltahub.server.paths import MODEL
from deltahub.server.quotas import Usage, usage_of
from deltahub.server.records import Record
from deltahub.server.repositories import (
    Repository,
    find_repository,
    is_old_name,
    lookup,
    lookup_any_case,
    may_change,
    open_repository,
)
from deltahub.server.routes.revisions import adopted, stamp_of
from deltahub.server.state import State, state_of

# First segments of URLs with another meaning.
RESERVED: Final = frozenset(
    {"api", "datasets", "spaces", "kernels", "models", "buckets", "papers", "collections", "static"}
)


def create(request: Request, body: dict[str, Any]) -> Response:
    """Create a repository without a version. A previous redirect from its name ends.

    Raises:
        Refusal: it exists already, or cannot be created.
    """
    refuse_other_types(body.get("type"))
    namespace = _namespace(request, body)
    require_write(request, namespace)
    path = DeltaPath(f"{namespace}/{text_field(body, 'name')}")
    if namespace.lower() in RESERVED:
        raise Refusal(400, f"{namespace!r} cannot be a namespace: the address /{namespace} is reserved.")
    state = state_of(request)
    url = f"{state.base_url(request)}/{path}"
    answer = {"url": url, "name": path, "id": path}
    existing = lookup_any_case(state, path)
    reused = existing is not None and is_old_name(path, existing)
    if existing and not reused:
        return _exists(existing.path, f"{state.base_url(request)}/{existing.path}")
    _refuse_twin(state, path)
    time, author = stamp_of(request)
    private = body.get("visibility") == "private" or body.get("private") is True
    new_record = Record(time, author, private)

    def change(record: Record | None) -> Record:
        if record is not None and not reused:  # an old name still has a record: see `deltahub.registry.rename`
            raise Refusal(409, f"{path} exists already.")
        return new_record

    try:
        state.records.change(path, change)
        if reused:
            reuse_name(state.registry.acting(caller_of(request).actor), path, time)
    except (Refusal, ConflictError):
        return _exists(path, url)
    return JSONResponse(answer)


def _exists(path: str, url: str) -> Response:
    message = f"{path} exists already."
    return JSONResponse({"error": message, "url": url}, 409, {"X-Error-Message": message})


def _namespace(request: Request, body: dict[str, Any]) -> str:
    """Return the namespace of a request; by default the only one the caller may write to, or the caller's own name."""
    if body.get("organization") not in (None, ""):
        return caller_of(request).spelled(text_field(body, "organization"))
    caller = caller_of(request)
    only = sorted(caller.namespaces or ())
    return only[0] if len(only) == 1 else caller.name or "anonymous"


def _refuse_twin(state: State, path: DeltaPath) -> None:
    """Refuse a name that differs from an existing one only in upper and lower case."""
    refuse_twin(state.registry, path)
    if twin := next((name for name in state.records.names() if name != path and name.lower() == path.lower()), None):
        msg = f"{path!r} and {twin!r}, which exists, differ only in upper and lower case. Use the existing writing."
        raise ReferenceSyntaxError(msg)


def refuse_other_types(kind: Any) -> None:
    """Check that a repository is of type model.

    Raises:
        Refusal: it is of another type, which this hub does not support.
    """
    if kind not in (None, "model"):
        known = kind in ("dataset", "space", "kernel", "bucket")
        message = f"This hub holds repositories of the type model, not {str(kind)[:40]!r}. Leave the type out."
        raise Refusal(501 if known else 400, message, NOT_SUPPORTED if known else None)


def delete(request: Request, body: dict[str, Any]) -> Response:
    """Delete a repository: its versions leave tombstones, and garbage collection removes their files later.

    A private one leaves only the numbers of its versions, so that the next owner of the name reveals nothing about it.
    """
    refuse_other_types(body.get("type"))
    path = f"{_namespace(request, body)}/{text_field(body, 'name')}"
    repository = find_repository(request, path, write=True)
    if is_old_name(path, repository):
        raise Refusal(400, f"{path} was renamed: it is {repository.path} now. To delete it, use that name.")
    time, author = stamp_of(request)

    def change(document: ReferenceDocument) -> ReferenceDocument:
        for alias in list(document.aliases):
            document = document.with_alias(alias, None, time, author)
        for branch in list(document.branches):
            document = document.with_branch(branch, None, time, author)
        for version in list(document.versions):
            document = document.without_version(version, time, author, "the repository was deleted")
        return document

    registry = repository.registry(request)
    uploads.forget_all(registry.store, repository.path)  # first: it frees space, and prevents further commits
    if repository.document.versions and repository.private:
        forget(registry, repository.path, time)
    elif repository.document.versions:
        with_reserve(registry.store.spend_reserve, lambda: registry.update(repository.path, change))
    uploads.forget_all(registry.store, repository.path)  # again: uploads may have arrived meanwhile
    repository.state.records.delete(repository.path)
    AccessRequests(registry.store).delete(repository.path)
    return JSONResponse({})


def move(request: Request, body: dict[str, Any]) -> Response:
    """Rename a repository; the old name redirects to it. A private one stays private under both names throughout.

    Raises:
        InUseError: the new name is taken.
    """
    refuse_other_types(body.get("type"))
    old = find_repository(request, text_field(body, "fromRepo"), write=True)
    move_repository(request, old, DeltaPath(text_field(body, "toRepo")))
    return JSONResponse({})


def move_repository(request: Request, old: Repository, new: DeltaPath) -> None:
    """Rename a repository: see `move`.

    Raises:
        Refusal: the caller may not write to the namespace of the new name.
        InUseError: the new name is taken.
    """
    require_write(request, new.namespace)
    state = old.state
    if new == old.path:
        return
    existing = lookup(state, new)
    # An interrupted move may be repeated.
    is_resumed = existing and not existing.document.versions and old.document.versions and existing.record == old.record
    if new.namespace.lower() in RESERVED or (existing and existing != old and not is_resumed):
        raise _taken(old.path, new)
    _refuse_twin(state, new)

    def change(record: Record | None) -> Record:
        assert old.record
        if record not in (None, old.record):
            raise _taken(old.path, new)
        return old.record

    if old.document.versions:
        moved = usage_of(old.document) if new.namespace != old.path.namespace else Usage()
        with state.quotas.reserved(new.namespace, moved):
            rename(old.registry(request), Reference(old.path), Reference(new))
    else:
        state.records.change(new, change)
        state.records.delete(old.path)
    AccessRequests(state.registry.store).move(old.path, new)


def _taken(old: str, name: str) -> InUseError:
    return InUseError(old, f"A model repository called {name} already exists", "Choose another name.")


def settings(request: Request, body: dict[str, Any]) -> Response:
    """Make a repository private or public, gated or open.

    Raises:
        Refusal: the request changes an unsupported setting.
    """
    repository = open_repository(request, write=True)
    is_private: bool | None = body.get("private") if isinstance(body.get("private"), bool) else None
    if "visibility" in body:
        visibility = text_field(body, "visibility")
        if visibility not in ("private", "public"):
            raise Refusal(400, f"A repository here is private or public, not {visibility!r}.")
        is_private = visibility == "private"
    gated = body.get("gated")
    if gated not in (None, False, "auto", "manual"):
        raise Refusal(400, f"'gated' must be auto, manual or false, got {str(gated)[:40]!r}.")

    def change(record: Record | None) -> Record:
        current = record or adopted(request, repository)
        private = current.private if is_private is None else is_private
        return replace(current, private=private, gated=current.gated if gated is None else gated or None)

    if is_private is None and gated is None:
        return JSONResponse({"private": repository.private, "gated": repository.gated or False})
    record = repository.state.records.change(repository.path, change)
    return JSONResponse({"private": record.private, "gated": record.gated or False})


routes: Final = [
    Route("/api/repos/create", with_json(create, require_writer), methods=["POST"]),
    Route("/api/repos/delete", with_json(delete, require_writer), methods=["DELETE"]),
    Route("/api/repos/move", with_json(move, require_writer), methods=["POST"]),
    Route(f"{MODEL}/settings", with_json(settings, may_change), methods=["PUT"]),
]
