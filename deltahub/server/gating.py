"""Gated repositories: everyone who may see one sees its description, but only members of a list get its files.

A user is the name of a token. Those who may write to the namespace are always members; others ask, and are accepted at once
(``"auto"``) or by somebody who may write (``"manual"``). The requests of a repository are one document, ``hub/access/NAMESPACE/NAME.json``,
which counts only for the repository that was created at the same time: a successor of the same name begins without members.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from starlette.requests import HTTPConnection

from deltahub.registry import stamps
from deltahub.registry.hub_records import ACCESS
from deltahub.server.access import caller_of
from deltahub.server.documents import Documents
from deltahub.server.errors import Refusal
from deltahub.server.repositories import Repository
from deltahub.stores.base import Store

Status = Literal["accepted", "pending", "rejected"]
STATUSES: Final[tuple[Status, ...]] = ("accepted", "pending", "rejected")
GATED: Final = "GatedRepo"  # for X-Error-Code
_MOST: Final = 10_000  # requests per repository


@dataclass(frozen=True)
class AccessRequest:
    """A user's request for the files of a gated repository.

    Attributes:
        id: 24 hex digits.
        user: name of a token.
        status: ``"accepted"``, ``"pending"`` or ``"rejected"``.
        time: of the last change, ISO 8601 in UTC.
        reason: why it was rejected; None for none.
    """

    id: str
    user: str
    status: Status
    time: str
    reason: str | None = None


@dataclass(frozen=True)
class RequestList:
    """All requests for one repository.

    Attributes:
        born: creation time of the repository.
        requests: in order of arrival.
    """

    born: str
    requests: tuple[AccessRequest, ...] = ()

    def of(self, user: str) -> AccessRequest | None:
        """Return the request of a user; None if there is none."""
        return next((item for item in self.requests if item.user == user), None)

    def with_request(self, changed: AccessRequest) -> RequestList:
        """Add a request, or replace the one with the same id.

        Raises:
            Refusal: there are too many.
        """
        if not any(item.id == changed.id for item in self.requests):
            if len(self.requests) >= _MOST:
                raise Refusal(
                    409, f"There are {_MOST:,} requests for this repository. Its owner has to handle them first."
                )
            return replace(self, requests=(*self.requests, changed))
        requests = tuple(changed if item.id == changed.id else item for item in self.requests)
        return replace(self, requests=requests)


class AccessRequests:
    """The requests for all gated repositories of a hub.

    Args:
        store: of its registry.
    """

    def __init__(self, store: Store) -> None:
        self._documents: Documents[RequestList] = Documents(store, ACCESS, _load, asdict)

    def of(self, repository: Repository) -> RequestList:
        """Return the requests for a repository."""
        return _current(self._documents.find(repository.path), repository.born)

    def change(self, repository: Repository, change: Callable[[RequestList], RequestList]) -> RequestList:
        """Change the requests for a repository."""
        return self._documents.change(repository.path, lambda stored: change(_current(stored, repository.born)))

    def move(self, old: str, new: str) -> None:
        """Take the requests along when a repository is renamed."""
        if (stored := self._documents.find(old)) is not None:
            self._documents.change(new, lambda _: stored)
            self._documents.delete(old)

    def delete(self, path: str) -> None:
        """Remove the requests for a deleted repository."""
        self._documents.delete(path)


def new_request(user: str, status: Status) -> AccessRequest:
    """Return a request of a user from now."""
    return AccessRequest(secrets.token_hex(12), user, status, stamps.now())


def require_content(request: HTTPConnection, repository: Repository) -> None:
    """Check that the caller may read the files of a repository.

    Raises:
        Refusal: it is gated, and the caller is not a member: 401 without a token, else 403.
    """
    caller = caller_of(request)
    if not repository.gated or caller.may_write(repository.path.namespace):
        return
    own = None if caller.anonymous else AccessRequests(repository.state.registry.store).of(repository).of(caller.name)
    if own and own.status == "accepted":
        return
    page = f"{repository.state.base_url(request)}/{repository.path}"
    state = f"Your request is {own.status}." if own else f"Ask for access: POST {page}/ask-access with a token."
    message = f"Access to model {repository.path} is restricted and you are not in the authorized list. {state}"
    raise Refusal(401 if caller.anonymous else 403, message, GATED)


def _current(stored: RequestList | None, born: str) -> RequestList:
    return stored if stored and stored.born == born else RequestList(born)


def _load(values: dict[str, Any]) -> RequestList:
    return RequestList(values["born"], tuple(AccessRequest(**item) for item in values["requests"]))
