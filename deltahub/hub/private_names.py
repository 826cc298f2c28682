"""Names withheld from public sources.

A public hub sees every name in its requests, and a mistyped name of a private delta would be looked up there after all other sources
failed. So a name without a source is not looked up in a public source if its namespace is private, or a misspelling of a private
one. Private namespaces are those of deltas in private sources, of deltas pulled from a private source, those bound to private
sources, and the user's own (`DELTAHUB_NAMESPACE`). A name is still looked up publicly if its namespace is known there: the user
bound it to the public source, or pulled a delta in it from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from deltahub.cache.remembered import CachedNames
from deltahub.errors import NotFoundError
from deltahub.reference import DeltaPath, Reference
from deltahub.sources.base import Source
from deltahub.sources.catalog import Choice
from deltahub.text.suggestions import mistyped

_NEAR = 5  # the most names in a message


class PrivateNames:
    """Filter of the names that may be looked up in a public source.

    Args:
        choice: the sources.
        names: the names pulled so far, with their sources.
    """

    def __init__(self, choice: Choice, names: CachedNames) -> None:
        self._choice = choice
        self._names = names

    def withheld(self, reference: Reference, source: Source, asked_sources: Sequence[Source]) -> NotFoundError | None:
        """Return the error for a forbidden lookup; None if the lookup is allowed.

        Args:
            reference: the reference to look up, without a source.
            source: the next source to ask.
            asked_sources: the sources that do not have it.

        Raises:
            UnreachableError: a private source cannot list its names.
        """
        if source.name not in self._choice.rules.public or self._known_at(reference, source):
            return None
        public = self._choice.rules.public
        near = {
            private.place: names
            for private in asked_sources
            if private.name not in public and (names := private.neighbours(reference.path))
        }
        reason = self._why_private(reference, near)
        if reason is None:
            return None
        full_name = f"{source.name}:{reference}"
        place = f"{source.place} was not asked, for {reason}; to ask it, name it: {full_name}"
        nearest = dict.fromkeys(name for names in near.values() for name in names)
        return NotFoundError(f"The delta {reference}", (place,), tuple(nearest)[:_NEAR])

    def _known_at(self, reference: Reference, source: Source) -> bool:
        """Check whether a namespace is known in a public source, or this exact name was pulled before from any source."""
        namespace = reference.path.namespace
        if source.name in self._choice.rules.bound.get(namespace.lower(), ()):
            return True
        return self._names.knows(reference.path) or source.name in self._names.sources(namespace)

    def _why_private(self, reference: Reference, near: dict[str, tuple[DeltaPath, ...]]) -> str | None:
        if near:
            place, names = next(iter(near.items()))
            return f"{names[0].namespace} is a namespace of {place}"
        namespace = reference.path.namespace
        for private_namespace, reason in self._private_namespaces(namespace):
            if mistyped(namespace, [private_namespace]):
                return f"{namespace if namespace.lower() == private_namespace.lower() else private_namespace} {reason}"
        return None

    def _private_namespaces(self, similar_name: str) -> Iterator[tuple[str, str]]:
        """Yield private namespaces and why each is private, without asking a source; previously pulled ones only if similar to `similar_name`."""
        public = {*self._choice.rules.public}
        if own_namespace := os.environ.get("DELTAHUB_NAMESPACE", ""):
            yield own_namespace, "is your own namespace (DELTAHUB_NAMESPACE)"
        for namespace, sources in self._choice.rules.bound.items():
            if not public & {*sources}:
                yield namespace, f"is a namespace of {sources[0]}"
        for namespace in mistyped(similar_name, self._names.namespaces()):
            if private := sorted(self._names.sources(namespace) - public):
                yield namespace, f"is a namespace of {private[0]}, from which it was pulled before"
