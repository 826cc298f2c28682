"""The list of all repositories, and the information on a single one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deltahub.checkpoint.checkpoint import CARD
from deltahub.reference import as_delta_path
from deltahub.registry.commit_message import commit_id
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.index import Listed
from deltahub.server import paging
from deltahub.server.access import Caller, caller_of
from deltahub.server.counted_responses import WholeJSONResponse, counted
from deltahub.server.errors import Refusal
from deltahub.server.git_attributes import shown_files
from deltahub.server.paths import MODEL
from deltahub.server.records import Record, may_be_private
from deltahub.server.repositories import EMPTY, Commit, Repository, open_repository
from deltahub.server.routes.blobs import blobs_of
from deltahub.server.routes.model_info import DELTA, ModelInfo, expanded, siblings, sized_siblings
from deltahub.server.routes.trees import LISTED, moment
from deltahub.server.state import State, state_of

LIST: Final = "X-DeltaHub-List"  # the header of a list as the registry has it: how many deltas there are on all pages
_LONGEST: Final = 200  # letters of a search: each word is a condition of its own
_MOST_FILES: Final = 25_000  # that a page of the list names
_ORDERS: Final = {"createdAt": "created", "lastModified": "modified"}


def list_models(request: Request) -> Response:
    """List the visible repositories that match a query, newest first, in pages."""
    state, query = state_of(request), request.query_params
    if delta_query := query.get(DELTA):
        return list_deltas(request, Query.from_json(delta_query))
    matches = [facts for facts in _all(request, state) if _matches(facts, request)]
    order = _ORDERS.get(query.get("sort", ""), "modified")
    matches.sort(key=lambda facts: (getattr(facts, order), facts.path), reverse=query.get("direction") != "1")
    start, count = paging.window(request)
    lines: list[dict[str, Any]] = []
    files = 0
    for facts in matches[start : start + count]:
        lines.append(_line(request, state, facts))
        files += len(lines[-1].get("siblings", ()))
        if files > _MOST_FILES:
            count = len(lines)  # continued on the next page
            break
    return paging.page(request, lines, start=start, count=count, total=len(matches))


def list_deltas(request: Request, query: Query) -> Response:
    """List the deltas visible to the caller as the registry lists them, in its order, page by page."""
    _refuse_long(query.text)
    matches = [entry for entry, _ in _committed(request, state_of(request), query)]
    start, count = paging.window(request)
    lines = [{"id": entry.name, DELTA: asdict(entry)} for entry in matches[start : start + count]]
    answer = paging.page(request, lines, start=start, count=count, total=len(matches))
    answer.headers[LIST] = str(len(matches))
    return answer


def my_repositories(request: Request) -> Response:
    """List the repositories that the caller may change, or those of a namespace, with the size of the newest version.

    Raises:
        Refusal: the request came without a token.
    """
    caller, namespace = caller_of(request), request.path_params.get("namespace")
    if caller.anonymous:
        raise Refusal(401, "This needs a token, and none came with the request. Log in with `hf auth login`.")
    matches = [facts for facts in _all(request, state_of(request)) if _is_own(facts, caller, namespace)]
    start, count = paging.window(request)
    lines = [
        {
            "id": facts.path,
            "type": "model",
            "updatedAt": moment(facts.modified),
            "visibility": "private" if facts.private else "public",
            "storage": facts.summary.get("size", 0),
        }
        for facts in matches[start : start + count]
    ]
    return paging.page(request, lines, start=start, count=count, total=len(matches))


def _is_own(facts: ModelInfo, caller: Caller, namespace: str | None) -> bool:
    return facts.author == namespace if namespace else caller.may_write(facts.author)


def _all(request: Request, state: State) -> Iterator[ModelInfo]:
    """Yield the repositories that the caller may see and that match the search words by name or content."""
    caller, records = caller_of(request), state.records.all()
    search = request.query_params.get("search", "")
    _refuse_long(search)
    committed = set[str]()
    for entry, private in _committed(request, state, Query(text=search)):
        committed.add(entry.name)
        yield _info_of(entry, records.get(entry.name), private=private)
    for name, record in records.items():
        words = search.lower().split()
        if record is None or name in committed or not all(word in name.lower() for word in words):
            continue
        path = as_delta_path(name)
        if path and caller.may_read(path.namespace, private=may_be_private(record) or path in state.records.private()):
            document = state.registry.stored(path)
            if document is None or not (document.versions or document.moved_to):
                times = record.created, record.created
                first = commit_id(EMPTY.digest)
                yield ModelInfo(path, first, *times, record.private, (), {}, {}, record.gated)


def _committed(request: Request, state: State, query: Query) -> Iterator[tuple[Listed, bool]]:
    """Yield the deltas that match a query and are visible to the caller, and whether each is private."""
    caller = caller_of(request)
    hidden = state.records.private()
    matches = state.index.search(Search(query))[0]
    # A repository created since is in the index; one deleted since is still in the records read before.
    hidden |= state.records.private()
    namespaces: dict[str, str] = {path: path.namespace for path in hidden}
    for entry in matches:
        private = entry.name in hidden
        if caller.may_read(namespaces.get(entry.name, ""), private=private):
            yield entry, private


def _refuse_long(search: str) -> None:
    if len(search) > _LONGEST:
        raise Refusal(400, f"A search has {_LONGEST} letters at most, got {len(search):,}. Search for less at once.")


def _info_of(entry: Listed, record: Record | None, *, private: bool) -> ModelInfo:
    summary = {key: value for key, value in entry.summary.items() if key != "card"}
    created = record.created if record else entry.time
    card = entry.summary.get("card") or {}
    digest = entry.digest
    assert digest  # a registry knows every digest
    gated = record.gated if record else None
    times = created, entry.time
    return ModelInfo(entry.name, commit_id(digest), *times, private, entry.tags, summary, card, gated, entry)


def _matches(facts: ModelInfo, request: Request) -> bool:
    query = request.query_params
    required_tags = [tag for text in query.getlist("filter") for tag in text.split(",") if tag]
    required_tags += [text for text in query.getlist("pipeline_tag") if text]
    if (author := query.get("author")) and facts.author.lower() != author.lower():
        return False
    if (gated := query.get("gated", "").lower()) in ("true", "false") and (gated == "true") != bool(facts.gated):
        return False
    return not required_tags or set(required_tags) <= set(facts.all_tags())


def _line(request: Request, state: State, facts: ModelInfo) -> dict[str, Any]:
    query = request.query_params
    fields = query.getlist("expand")
    values = facts.to_dict()
    full = query.get("full", "").lower() == "true"
    if not (full or query.get("cardData", "").lower() == "true" or {"cardData", "siblings"} & set(fields)):
        return expanded(values, fields)
    document = state.registry.stored(facts.path)
    version = (
        next((e for e in document.versions.values() if commit_id(e.digest) == facts.sha), None) if document else None
    )
    files = state.manifest(version.digest).files if version else ()
    record = state.records.all().get(facts.path)
    if record and not (record.adopted or record.plain):
        files = shown_files({entry.path: entry for entry in files})
    card = next((state.card(entry.sha256, entry.size) for entry in files if entry.path == CARD), {})
    return expanded({**values, "siblings": siblings(files), "cardData": facts.card_data(card)}, fields)


def model_info_of(repository: Repository, commit: Commit) -> ModelInfo:
    """Return the information on a repository at a commit, including its card."""
    entry = commit.entry
    card = next((repository.state.card(e.sha256, e.size) for e in commit.manifest.files if e.path == CARD), {})
    summary = {key: value for key, value in entry.summary.items() if key != "card"} if entry else {}
    modified = entry.time if entry else repository.created
    tags = entry.tags if entry else ()
    times = repository.created, modified
    return ModelInfo(repository.path, commit.id, *times, repository.private, tags, summary, card, repository.gated)


def model_info(request: Request) -> Response:
    """Answer with the information on a repository, at the head of its main branch or at a revision."""
    repository = open_repository(request)
    commit = repository.at(request.path_params.get("revision", "main"))
    facts = model_info_of(repository, commit)
    return counted(request, LISTED * len(commit.manifest.files), lambda: _info(request, repository, commit, facts))


def _info(request: Request, repository: Repository, commit: Commit, facts: ModelInfo) -> Response:
    has_sizes = "blobs" in request.query_params
    values = {
        **facts.to_dict(),
        "cardData": facts.card_data(facts.card),
        "siblings": sized_siblings(blobs_of(repository, commit, commit.files)) if has_sizes else siblings(commit.files),
        "spaces": [],
        "usedStorage": commit.manifest.size,
    }
    if "securityStatus" in request.query_params:
        values["securityRepoStatus"] = {"scansDone": False, "filesWithIssues": []}
    if parameters := commit.manifest.parameters["total"]:
        values["safetensors"] = {"parameters": _by_dtype(commit), "total": parameters}
    return WholeJSONResponse(expanded(values, request.query_params.getlist("expand")))


def _by_dtype(commit: Commit) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in commit.manifest.tensors:
        values = 1
        for size in tensor.shape:
            values *= size
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + values
    return counts


routes: Final = [
    Route("/api/settings/repositories", my_repositories),
    Route("/api/organizations/{namespace:part}/settings/repositories", my_repositories),
    Route("/api/models", list_models),
    Route(MODEL, model_info),
    Route(f"{MODEL}/revision/{{revision:part}}", model_info),
]
