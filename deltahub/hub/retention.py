"""Retention: which versions of a namespace's deltas are old enough to remove, and which are kept and why.

A version is never due while anything names it: an alias, a branch, "latest", a move that waits for approval, or a lock file. Removal is
that of `edits.remove`, so each check is made again at that time, and each version leaves a tombstone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from deltahub.errors import DeltaHubError, NotFoundError
from deltahub.hub import edits
from deltahub.hub.hub import Hub
from deltahub.reference import DeltaPath, Digest, Reference
from deltahub.registry import stamps
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import number
from deltahub.registry.search.conditions import Query, Search
from deltahub.text.suggestions import closest


@dataclass(frozen=True)
class Rule:
    """Which versions may go; a version must meet every condition.

    Attributes:
        keep: how many of the newest versions of each delta stay, at least 1.
        older_than: how long ago a version must have been pushed.
        keep_tags: tags of versions that stay.
    """

    keep: int
    older_than: timedelta = timedelta(0)
    keep_tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Decision:
    """The decision of a rule on one version.

    Attributes:
        reference: the version, with its source.
        size: bytes of its files; None where a hub does not tell. Files that other versions also have are only counted here, not freed.
        kept: why it stays; empty if it is due.
        error: why it could not be removed; empty otherwise.
    """

    reference: Reference
    size: int | None
    kept: str = ""
    error: str = ""

    @property
    def due(self) -> bool:
        """Whether the rule removes it."""
        return not self.kept


def decide(
    hub: Hub, namespace: str, rule: Rule, *, source: str | None = None, needed: Collection[Digest] = ()
) -> Iterator[Decision]:
    """Iterate over the versions of a namespace that the rule's number and age leave, each with the decision.

    Args:
        source: where; None for the default source.
        needed: digests that must stay, such as those of lock files.

    Raises:
        NotFoundError: the source has no delta in the namespace.
        ConfigError: the source cannot be listed.
        UnreachableError: the source does not answer.
    """
    place = hub.source(source)
    listed, _ = hub.search(Search(Query(sort="name")), source)
    names = [DeltaPath(each.name) for each in listed]
    if namespace not in {name.namespace for name in names}:
        raise NotFoundError(
            f"The namespace {namespace}", (place.place,), closest(namespace, {name.namespace for name in names})
        )
    for name in names:
        if name.namespace == namespace:
            document = place.document(name)
            for version, reason in _judged(document, rule, needed).items():
                size = document.versions[version].summary.get("size")
                yield Decision(Reference(name, source=place.name, version=version), size, reason)


def apply(hub: Hub, due: Collection[Decision], *, message: str, needed: Collection[Digest] = ()) -> Iterator[Decision]:
    """Remove what is due, each version for itself; what is refused meanwhile stays, with the error in its decision."""
    for decision in due:
        try:
            edits.remove(hub, decision.reference, message=message, needed=needed)
        except DeltaHubError as error:
            yield Decision(decision.reference, decision.size, error=str(error))
        else:
            yield decision


def _judged(document: ReferenceDocument, rule: Rule, needed: Collection[Digest]) -> dict[str, str]:
    """Return the versions that the rule's number and age leave, oldest first, each with the reason to keep it."""
    versions = sorted(document.versions, key=number)
    now = datetime.fromisoformat(stamps.now())
    old = [
        version
        for version in versions[: -rule.keep]
        if now - datetime.fromisoformat(document.versions[version].time) >= rule.older_than
    ]
    return {version: _reason(document, version, rule, needed) for version in old}


def _reason(document: ReferenceDocument, version: str, rule: Rule, needed: Collection[Digest]) -> str:
    aliases = document.aliases_of(version)
    branches = [branch for branch, target in document.branches.items() if target == version]
    requests = [key for key, request in document.requests.items() if version in (request.before, request.after)]
    tags = sorted(rule.keep_tags.intersection(document.versions[version].tags))
    reasons = (
        (aliases, "the alias {} points to it"),
        (branches, "the branch {} points to it"),
        ([version] if version == document.latest else [], "{} is the newest"),
        (requests, "the requested move {} names it"),
        ([version] if document.versions[version].digest in needed else [], "a lock file pins it"),
        (tags, "it has the tag {}"),
    )
    return next((reason.format(names[0]) for names, reason in reasons if names), "")
