"""Callers of the server and their permissions.

The middleware in `deltahub.server.authentication` identifies the caller once per request. The routes check permissions here
before they touch anything. A caller who may not see a repository gets the same answer as for a missing one, so that no answer
reveals a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from starlette.requests import HTTPConnection

from deltahub.registry.actor import Actor
from deltahub.server.errors import REPO_NOT_FOUND, Refusal

Scope = Literal["none", "read", "write", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("none", "read", "write", "admin")
CALLER: Final = "deltahub.caller"  # key of the caller in an ASGI scope


@dataclass(frozen=True)
class Caller:
    """The sender of a request.

    Attributes:
        name: of the token; empty for a caller without a token.
        scope: ``"read"`` may read, ``"write"`` may also push, ``"admin"`` may do everything everywhere.
        namespaces: where the scope applies; None for everywhere. Anyone whose scope is not ``"none"`` may read public
            repositories.
        token: id of the token; empty for a caller without a token.
    """

    name: str = ""
    scope: Scope = "none"
    namespaces: frozenset[str] | None = None
    token: str = ""

    @property
    def anonymous(self) -> bool:
        """Whether the request came without a token."""
        return not self.name

    @property
    def actor(self) -> Actor:
        """The caller as the author of changes."""
        return Actor(self.name or "anonymous", self.scope)

    def may_read(self, namespace: str, *, private: bool) -> bool:
        """Return whether the caller may see and read a repository."""
        if not private:
            return self.scope != "none"
        trusted = self.scope in ("write", "admin") if self.anonymous else self.scope != "none"
        return trusted and self._holds(namespace)

    def may_write(self, namespace: str) -> bool:
        """Return whether the caller may create, change and delete repositories of a namespace."""
        return self.scope in ("write", "admin") and self._holds(namespace)

    def spelled(self, namespace: str) -> str:
        """Return a namespace as the token spells it, where only upper and lower case differ."""
        if not self.namespaces or namespace in self.namespaces:
            return namespace
        return next((own for own in sorted(self.namespaces) if own.lower() == namespace.lower()), namespace)

    def _holds(self, namespace: str) -> bool:
        return self.scope == "admin" or self.namespaces is None or namespace in self.namespaces


ANONYMOUS: Final = Caller()


def caller_of(request: HTTPConnection) -> Caller:
    """Return the caller of a request; a caller without any permission when no middleware set one."""
    caller = request.scope.get(CALLER, ANONYMOUS)
    assert isinstance(caller, Caller)
    return caller


def repository_not_found(request: HTTPConnection, repository: str) -> Refusal:
    """Return the single answer for a repository that does not exist or that the caller may not see.

    Args:
        repository: as the caller named it, e.g. ``"acme/ner"``.
    """
    if caller_of(request).anonymous:
        message = f"{repository} was not found. If it is private, send a token that may read it."
        return Refusal(401, message, REPO_NOT_FOUND, title=_NOT_FOUND)
    message = f"{repository} was not found, or this token may not see it."
    return Refusal(404, message, REPO_NOT_FOUND, title=_NOT_FOUND)


def require_read(request: HTTPConnection, namespace: str, private: bool, repository: str | None = None) -> Caller:
    """Check that the caller may read a repository.

    Args:
        private: whether the repository is private.
        repository: its name for the message, e.g. ``"acme/ner"``; by default the namespace.

    Raises:
        Refusal: the caller may not read it; same answer as for a missing repository.
    """
    caller = caller_of(request)
    if not caller.may_read(namespace, private=private):
        raise repository_not_found(request, repository or namespace)
    return caller


def require_write(request: HTTPConnection, namespace: str) -> Caller:
    """Check that the caller may create, change and delete in a namespace, without revealing its content.

    Raises:
        Refusal: the caller may not: 401 without a token, else 403.
    """
    caller = caller_of(request)
    if caller.may_write(namespace):
        return caller
    require_writer(request)
    namespaces = ", ".join(sorted(caller.namespaces or ()))
    raise Refusal(403, f"The token {caller.name!r} may write to {namespaces}, not to {namespace}.")


def require_writer(request: HTTPConnection) -> Caller:
    """Check that the caller may write to at least one namespace, before the namespace is known.

    Raises:
        Refusal: the caller may not: 401 without a token, else 403.
    """
    caller = caller_of(request)
    if caller.scope in ("write", "admin"):
        return caller
    if caller.anonymous:
        raise Refusal(401, f"Writing needs a token of scope write. {_HOW}")
    raise Refusal(403, f"The token {caller.name!r} has scope {caller.scope}, and writing needs scope write. {_HOW}")


def require_admin(request: HTTPConnection) -> Caller:
    """Check that the caller has scope admin.

    Raises:
        Refusal: the caller lacks it: 401 without a token, else 403.
    """
    caller = caller_of(request)
    if caller.scope == "admin":
        return caller
    if caller.anonymous:
        raise Refusal(401, f"This needs a token of scope admin. {_HOW}")
    raise Refusal(403, f"The token {caller.name!r} has scope {caller.scope}, and this needs scope admin.")


_NOT_FOUND: Final = "Repository not found"  # huggingface_hub adds where, and what to do
_HOW: Final = "Ask the administrator of this hub for one; they make it with `deltahub serve token create`."
