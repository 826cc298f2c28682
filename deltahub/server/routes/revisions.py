"""Branches, tags and the history of commits.

A commit is a version of the delta, a tag is an alias, and a branch is a line of versions: see `deltahub.registry.document`.
"""

from __future__ import annotations

import html
import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.reference import MAIN, check_alias, check_git_tag, is_version
from deltahub.registry import stamps
from deltahub.registry.amend import DESCRIPTION
from deltahub.registry.case_collisions import refuse_twin
from deltahub.registry.commit_message import digest_in, with_digest
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import CARD_FACTS, Version, summary_of
from deltahub.server import paging
from deltahub.server.access import caller_of
from deltahub.server.bodies import text_field, with_json
from deltahub.server.counted_responses import WholeJSONResponse, counted
from deltahub.server.errors import REVISION_NOT_FOUND, Refusal
from deltahub.server.paths import MODEL
from deltahub.server.quotas import Usage
from deltahub.server.records import Record, Squash
from deltahub.server.repositories import EMPTY, FIRST_COMMIT, Repository, may_change, open_repository
from deltahub.server.routes.model_info import DELTA
from deltahub.server.routes.trees import moment

_ENTRY: Final = 2000  # approximate bytes of memory per entry of a reference document while it is sent


def stamp_of(request: Request) -> tuple[str, str]:
    """Return the time and author of a change made by a request."""
    return stamps.now(), caller_of(request).name or "anonymous"


def list_refs(request: Request) -> Response:
    """Answer with all branches and tags, and for DeltaHub the reference document; see `deltahub.sources.huggingface.history`."""
    repository = open_repository(request)
    tags = sorted(repository.document.aliases.items())
    answer = {
        "branches": [_ref(repository, "heads", *branch) for branch in repository.branches().items()],
        "converts": [],
        "tags": [_ref(repository, "tags", *tag) for tag in tags],
    }
    if request.query_params.get("include_prs"):
        answer["pullRequests"] = []
    document = repository.document
    if not (document.versions or document.removed):
        return JSONResponse({**answer, DELTA: None})
    versions = {name: replace(entry, summary=_amendable(entry)) for name, entry in document.versions.items()}
    size = _ENTRY * (len(versions) + len(document.removed) + len(document.log))

    def make() -> Response:
        data = replace(document, versions=versions, moving=None).to_bytes()
        return WholeJSONResponse({**answer, DELTA: json.loads(data)})

    return counted(request, size, make)


def _amendable(entry: Version) -> dict[str, Any]:
    """Return what of a version's summary its manifest does not say, or says otherwise."""
    return {key: entry.summary[key] for key in ("metrics", DESCRIPTION, CARD_FACTS) if key in entry.summary}


def _ref(repository: Repository, kind: str, name: str, version: str | None) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": repository.id_of(version)}


def list_commits(request: Request) -> Response:
    """List the commits in the history of a revision, newest first; with ``expand[]=formatted``, titles and messages as HTML too."""
    repository = open_repository(request)
    revision = request.path_params["revision"]
    versions = _history(repository, revision)
    start, count = paging.window(request)
    lines = [_described(repository, item) for item in versions[start : start + count]]
    squash = _squash_of(repository, revision)
    if squash and start + len(lines) == len(versions) and lines:
        lines[-1] |= {"title": squash.message.partition("\n")[0], "date": moment(squash.time)}
        lines[-1] |= {"message": squash.message.partition("\n")[2].strip(), "authors": [{"user": squash.author}]}
    if "formatted" in request.query_params.getlist("expand[]") + request.query_params.getlist("expand"):
        for line in lines:
            line["formatted"] = {key: html.escape(line[key]) for key in ("title", "message")}
    return paging.page(request, lines, start=start, count=count, total=len(versions))


def _history(repository: Repository, revision: str) -> list[str | None]:
    """Return the versions in the history of a revision, newest first, and None for the first commit of the repository."""
    version = repository.find(revision)
    if version is None:
        return [None]
    squash, versions = _squash_of(repository, revision), list[str | None]()
    for item in repository.document.history(version):
        versions.append(item)
        if repository.document.versions[item].digest == EMPTY.digest or (squash and squash.version == item):
            return versions
    return [*versions, None] if repository.began_here else versions


def _squash_of(repository: Repository, revision: str) -> Squash | None:
    """Return with what the history of a branch begins since it was squashed; None for other revisions, or if it was not."""
    branch = revision.removeprefix("refs/heads/")
    document = repository.document
    squash = repository.record.squashed.get(branch) if repository.record else None
    if squash is None or branch not in repository.branches() or branch in document.aliases:
        return None
    return squash if squash.version in document.history(repository.branches()[branch] or "") else None


def _described(repository: Repository, version: str | None) -> dict[str, Any]:
    entry = repository.document.versions[version] if version else _first(repository)
    title, _, text = entry.message.partition("\n")
    if (
        "format" not in entry.summary and digest_in(entry.message) is None
    ):  # a delta: older clients find it by its digest
        _, text = with_digest(entry.message, entry.digest)
    return {
        "id": repository.id_of(version),
        "title": title or f"{version} of {repository.path}",
        "message": text.strip(),
        "date": moment(entry.time),
        "authors": [{"user": entry.author}],
    }


def create_tag(request: Request, body: dict[str, Any]) -> Response:
    """Point a new alias to a revision. A version's own number already counts as its tag.

    Raises:
        Refusal: a tag or branch has this name, or it is the number of another version.
    """
    repository = open_repository(request, write=True)
    name = text_field(body, "tag")
    repository.find(request.path_params["revision"])
    tag = check_git_tag(name)
    version = _version(request, repository, request.path_params["revision"])
    reason = stamps.text(text_field(body, "message", ""))

    def change(document: ReferenceDocument) -> ReferenceDocument:
        if tag == document.resolve(version):
            return document
        _refuse_number(document, tag)
        _refuse_taken("tags", document.aliases, tag)
        return document.with_alias(tag, document.resolve(version), *stamp_of(request), reason=reason)

    repository.registry(request).update(repository.path, change)
    return JSONResponse({}, 201)


def delete_tag(request: Request) -> Response:
    """Remove an alias.

    Raises:
        Refusal: it does not exist.
    """
    repository = open_repository(request, write=True)
    tag = request.path_params["revision"]

    def change(document: ReferenceDocument) -> ReferenceDocument:
        if tag in document.versions and tag not in document.aliases:
            raise Refusal(400, f"{tag} of {document.name} is a version, which keeps its number. Nothing was deleted.")
        if tag not in document.aliases:
            raise Refusal(404, f"{document.name} has no tag {tag!r}.", REVISION_NOT_FOUND)
        return document.with_alias(tag, None, *stamp_of(request))

    if not repository.document.versions:
        change(repository.document)
    repository.registry(request).update(repository.path, change)
    return JSONResponse({})


def create_branch(request: Request, body: dict[str, Any]) -> Response:
    """Begin a branch at a revision.

    Raises:
        Refusal: a branch or tag has this name.
    """
    repository = open_repository(request, write=True)
    branch = request.path_params["revision"]
    if branch == MAIN:
        raise _taken("heads", MAIN)
    check_alias(branch)
    version = _version(request, repository, text_field(body, "startingPoint", MAIN))

    def change(document: ReferenceDocument) -> ReferenceDocument:
        _refuse_taken("heads", document.branches, branch)
        return document.with_branch(branch, document.resolve(version), *stamp_of(request))

    repository.registry(request).update(repository.path, change)
    return JSONResponse({}, 201)


def delete_branch(request: Request) -> Response:
    """Remove a branch; its versions stay.

    Raises:
        Refusal: it does not exist, or is the main branch.
    """
    repository = open_repository(request, write=True)
    branch = request.path_params["revision"]
    if branch == MAIN:
        raise Refusal(403, f"Cannot delete refs/heads/{MAIN}. To delete everything, delete the repository.")

    def change(document: ReferenceDocument) -> ReferenceDocument:
        if branch not in document.branches:
            raise Refusal(404, f"Invalid rev id: {document.name} has no branch {branch!r}.", REVISION_NOT_FOUND)
        return document.with_branch(branch, None, *stamp_of(request))

    if not repository.document.versions:
        change(repository.document)
    repository.registry(request).update(repository.path, change)
    return JSONResponse({})


def squash(request: Request, body: dict[str, Any]) -> Response:
    """Squash the history of a branch: it begins with its newest version, which keeps its id.

    The older versions are removed, except tagged ones and those in the history of another branch.
    """
    repository = open_repository(request, write=True)
    branch = request.path_params["revision"]
    if branch not in repository.branches():
        raise Refusal(404, f"{repository.path} has no branch {branch!r}.", REVISION_NOT_FOUND)
    message = stamps.text(text_field(body, "message", "") or f"Super-squash branch {branch!r}")
    _version(request, repository, branch)

    def change(document: ReferenceDocument) -> ReferenceDocument:
        time, author = stamp_of(request)
        _, *older = document.history(document.resolve(branch))
        ends = {MAIN: document.latest, **document.branches}
        kept_versions = {version for name, head in ends.items() if name != branch for version in document.history(head)}
        for version in older:
            if version not in kept_versions and version not in document.aliases.values():
                document = document.without_version(version, time, author, f"the history of {branch} was squashed")
        return document

    document = repository.registry(request).update(repository.path, change)
    end = replace(repository, document=document).branches()[branch]
    assert end
    beginning = Squash(end, message, *stamp_of(request))

    def begin(record: Record | None) -> Record:
        current = record or adopted(request, repository)
        return replace(current, squashed={**current.squashed, branch: beginning})

    repository.state.records.change(repository.path, begin)
    return JSONResponse({})


def adopted(request: Request, repository: Repository) -> Record:
    """Return a record for a repository that was pushed to the registry without one."""
    return Record(repository.created, stamp_of(request)[1], adopted=True)


def _first(repository: Repository) -> Version:
    """Return the metadata of the first commit of a new repository."""
    author = repository.record.author if repository.record else ""
    return Version(EMPTY.digest, repository.created, author, FIRST_COMMIT, (), summary_of(EMPTY))


def _version(request: Request, repository: Repository, revision: str) -> str:
    """Return the version that a revision means; the first commit of a new repository becomes one.

    Raises:
        Refusal: it means none.
    """
    if version := repository.find(revision):
        return version

    first = _first(repository)

    def change(document: ReferenceDocument) -> ReferenceDocument:
        main = document.latest if document.versions else None
        document, _ = document.with_version(first)
        return document.with_branch(MAIN, main, *stamp_of(request)) if main else document

    registry = repository.registry(request)
    refuse_twin(registry, repository.path)
    more = Usage(0, 0 if repository.document.versions else 1)
    with repository.state.quotas.reserved(repository.path.namespace, more):
        document = registry.add({EMPTY.digest.hex: EMPTY.to_bytes()}, repository.path, change)
    return document.version_for(first.digest)


def _refuse_number(document: ReferenceDocument, tag: str) -> None:
    if tag in document.versions or tag in document.removed or (is_version(tag.lower()) and not is_version(tag)):
        raise Refusal(400, f"{tag} is the number of another version of {document.name}. Choose another name.")


def _refuse_taken(kind: str, names: Collection[str], name: str) -> None:
    if name in names:
        raise _taken(kind, name)


def _taken(kind: str, name: str) -> Refusal:
    message = f"Reference refs/{kind}/{name} already exists. Delete it first, or choose another name."
    return Refusal(409, message)


routes: Final = [
    Route(f"{MODEL}/refs", list_refs),
    Route(f"{MODEL}/commits/{{revision:part}}", list_commits),
    Route(f"{MODEL}/tag/{{revision:part}}", with_json(create_tag, may_change), methods=["POST"]),
    Route(f"{MODEL}/tag/{{revision:part}}", delete_tag, methods=["DELETE"]),
    Route(f"{MODEL}/branch/{{revision:part}}", with_json(create_branch, may_change), methods=["POST"]),
    Route(f"{MODEL}/branch/{{revision:part}}", delete_branch, methods=["DELETE"]),
    Route(f"{MODEL}/super-squash/{{revision:part}}", with_json(squash, may_change), methods=["POST"]),
]
