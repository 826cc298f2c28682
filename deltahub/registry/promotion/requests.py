"""Requests for moves of protected aliases, their approvals, and records of checks.

Requests are part of the reference document. So an approval, and the move that the last approval makes, are one swap: the version that
was approved is the one that the alias points to. Any other move of the alias makes its requests void.
"""

from __future__ import annotations

from dataclasses import replace

from deltahub.errors import ConfigError, InUseError, NotFoundError, RefusedMoveError
from deltahub.reference import DeltaPath, check_alias
from deltahub.registry import stamps
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, MoveRequest
from deltahub.registry.promotion.guard import require_move
from deltahub.registry.promotion.policy import Policy, Rule, digest_of, read_policy
from deltahub.registry.registry import Registry


def ask(
    registry: Registry, path: DeltaPath, alias: str, version: str | None, reason: str
) -> tuple[ReferenceDocument, str]:
    """Ask others to approve the move of a protected alias from where it points now; nothing else is changed.

    Args:
        version: the version to point it to; None to remove it.
        reason: why, for those who approve it and for the log.

    Returns:
        The new document and the id of the request, ``"r1"``.

    Raises:
        ConfigError: the alias needs no approval.
        RefusedMoveError: this one may not ask for it, it lacks a reason, or the version does not meet the rules.
        InUseError: somebody else asked for the same move already.
    """
    check_alias(alias)
    reason = stamps.text(reason).strip()
    number = ""

    def change(document: ReferenceDocument) -> ReferenceDocument:
        nonlocal number
        policy, rules = _rules(registry, document, alias)
        target = None if version is None else document.resolve(version)
        before = document.aliases.get(alias)
        if before == target:
            raise InUseError(
                f"{document.name}@{alias}", f"it points to {target or 'nothing'} already", "Nothing to ask for."
            )
        time, author = registry.stamp()
        request = MoveRequest(alias, before, target, time, author, reason, digest_of(rules))
        for key, other in document.requests.items():
            if (other.alias, other.before, other.after, other.rules) == (alias, before, target, request.rules):
                if other.author == author:
                    number = key
                    return document
                raise InUseError(
                    f"{document.name}@{alias}",
                    f"{other.author} asked for this move already, in {key}",
                    f"Approve it: deltahub approve {document.name} {key}",
                )
        require_move(registry, policy, registry.actor, document, request)
        number = f"r{sum(move.action == 'ask' for move in document.log) + 1}"
        move = Move(time, author, "ask", alias, before, target, reason)
        return replace(document, requests={**document.requests, number: request}, log=(*document.log, move))

    return registry.update(path, change), number


def approve(registry: Registry, path: DeltaPath, number: str) -> ReferenceDocument:
    """Approve a request; the last approval that it needs makes exactly the move that was asked for.

    Args:
        number: the id of the request, ``"r1"``.

    Raises:
        NotFoundError: the request does not exist; it may be void, as its alias moved meanwhile.
        RefusedMoveError: this one asked for it, approved it already or may not approve it, or the version does not meet the rules.
    """

    def change(document: ReferenceDocument) -> ReferenceDocument:
        request = _request(document, number)
        policy, rules = _rules(registry, document, request.alias)
        actor, subject = registry.actor, _subject(document, number)
        if request.rules != digest_of(rules):
            raise RefusedMoveError(subject, "the rules changed since it was asked for", "Reject it, and ask again.")
        if actor.name == request.author:
            raise RefusedMoveError(subject, f"{actor.name} asked for it", "Another one must approve it.")
        if actor.name in request.approved:
            raise RefusedMoveError(subject, f"{actor.name} approved it already", "Another one must approve it too.")
        for rule in rules:
            if not policy.includes(rule.approvers, actor):
                raise RefusedMoveError(
                    subject, f"only {rule.approvers} may approve it, not {actor.name}", "Ask one of them."
                )
        time, author = registry.stamp()
        approved = (*request.approved, author)
        move = Move(time, author, "approve", request.alias, request.before, request.after)
        requests = {**document.requests, number: replace(request, approved=approved)}
        changed = replace(document, requests=requests, log=(*document.log, move))
        if len(approved) < _needed(rules):
            return changed
        return changed.with_alias(request.alias, request.after, time, request.author, request.reason, approved)

    return registry.update(path, change)


def reject(registry: Registry, path: DeltaPath, number: str, reason: str = "") -> ReferenceDocument:
    """End a request: by who asked, or by any who may approve it.

    Raises:
        NotFoundError: the request does not exist.
        RefusedMoveError: this one may not reject it.
    """

    def change(document: ReferenceDocument) -> ReferenceDocument:
        request = _request(document, number)
        policy, actor = read_policy(registry.store), registry.actor
        rules = policy.rules_for(document.names, request.alias) if policy else ()
        may = actor.name == request.author or all(policy.includes(rule.approvers, actor) for rule in rules if policy)
        if not may:
            raise RefusedMoveError(
                _subject(document, number), f"{actor.name} may not reject it", "Ask who may approve it."
            )
        time, author = registry.stamp()
        move = Move(time, author, "reject", request.alias, request.before, request.after, stamps.text(reason).strip())
        requests = {key: other for key, other in document.requests.items() if key != number}
        return replace(document, requests=requests, log=(*document.log, move))

    return registry.update(path, change)


def record_probe(registry: Registry, path: DeltaPath, version: str | None) -> tuple[ReferenceDocument, str]:
    """Record that a version gives the outputs saved with it, as the author found by running it.

    Returns:
        The new document and the version.

    Raises:
        NotFoundError: the delta or version does not exist.
    """
    name = ""

    def change(document: ReferenceDocument) -> ReferenceDocument:
        nonlocal name
        name = document.resolve(name or version)
        backbone = document.versions[name].summary.get("backbone_hash", "")
        move = Move(*registry.stamp(), "verify", name, after=f"probe on {backbone or 'its backbone'}")
        return replace(document, log=(*document.log, move))

    return registry.update(path, change), name


def _request(document: ReferenceDocument, number: str) -> MoveRequest:
    request = document.requests.get(number)
    if request is None:
        places = (f"requests {', '.join(document.requests) or 'none'}; one is void once its alias moves",)
        raise NotFoundError(f"The request {number} of {document.name}", places)
    return request


def _rules(registry: Registry, document: ReferenceDocument, alias: str) -> tuple[Policy, tuple[Rule, ...]]:
    """Return the policy and the rules for an alias that needs approvals.

    Raises:
        ConfigError: it needs none.
    """
    policy = read_policy(registry.store)
    rules = policy.rules_for(document.names, alias) if policy else ()
    if policy is None or not _needed(rules):
        msg = f"{document.name}@{alias} needs no approval by the rules of {registry.name}. Move it: deltahub alias {document.name}@VERSION {alias}"
        raise ConfigError(msg)
    return policy, rules


def _needed(rules: tuple[Rule, ...]) -> int:
    return max((rule.approvals for rule in rules), default=0)


def _subject(document: ReferenceDocument, number: str) -> str:
    request = document.requests[number]
    return f"The request {number} to move {document.name}@{request.alias} from {request.before or 'nothing'} to {request.after or 'nothing'}"
