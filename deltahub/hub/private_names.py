"""Names withheld from public sources.

Whoever runs a public hub reads every name that it is asked for, and a mistyped name of a private delta is one that only the public
hub is asked for in the end. So a name without a source is not looked for in a public source if its namespace is private, or is a
private one mistyped. These are private: the namespaces of the deltas in private sources; those in which something was pulled from
a private source; those that are bound to private sources; and this user's own (`DELTAHUB_NAMESPACE`). A name is looked for in
public all the same if its namespace is known to be there: the user bound it to the public source, or pulled something in it from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from deltahub.cache.remembered import CachedNames
from deltahub.errors import NotFoundError
from deltahub.reference import Reference
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

    def withheld(self, reference: Reference, source: Source, asked: Sequence[Source]) -> NotFoundError | None:
        """Return the error for a forbidden lookup; None if the lookup is allowed.

        Args:
            reference: the reference to look up.
            source: the next source to ask.
            asked: the sources that do not have it.

        Raises:
            UnreachableError: a private source does not say which names it has.
        """
        if reference.source or source.name not in self._choice.rules.public or self._known_at(reference, source):
            return None
        private = [one for one in asked if one.name not in self._choice.rules.public]
        near = {one.place: names for one in private if (names := one.neighbours(reference.path))}
        why = self._why_private(reference, near)
        if why is None:
            return None
        named = f"{source.name}:{reference.anywhere()}"
        place = f"{source.place} was not asked, for {why}; to ask it, name it: {named}"
        nearest = dict.fromkeys(name for names in near.values() for name in names)
        return NotFoundError(f"The delta {reference}", (place,), tuple(nearest)[:_NEAR])

    def _known_at(self, reference: Reference, source: Source) -> bool:
        """Check whether a namespace is known to be in a public source, or this very name was pulled before from anywhere."""
        namespace = reference.namespace
        if source.name in self._choice.rules.bound.get(namespace.lower(), ()):
            return True
        return self._names.knows(reference.path) or source.name in self._names.sources(namespace)

    def _why_private(self, reference: Reference, near: dict[str, tuple[str, ...]]) -> str | None:
        if near:
            place, names = next(iter(near.items()))
            return f"{names[0].partition('/')[0]} is a namespace of {place}"
        namespace = reference.namespace
        for known, why in self._private_namespaces(namespace):
            if mistyped(namespace, [known]):
                return f"{namespace if namespace.lower() == known.lower() else known} {why}"
        return None

    def _private_namespaces(self, like: str) -> Iterator[tuple[str, str]]:
        """Yield the private namespaces that are known without asking a source, each with why it is one; of those pulled before only some like a name."""
        public = {*self._choice.rules.public}
        if own := os.environ.get("DELTAHUB_NAMESPACE", ""):
            yield own, "is your own namespace (DELTAHUB_NAMESPACE)"
        for namespace, sources in self._choice.rules.bound.items():
            if not public & {*sources}:
                yield namespace, f"is a namespace of {sources[0]}"
        for namespace in mistyped(like, self._names.namespaces()):
            if private := sorted(self._names.sources(namespace) - public):
                yield namespace, f"is a namespace of {private[0]}, from which it was pulled before"
