"""Names withheld from public sources.

A public hub's operator can read every name that the hub is asked for, and a mistyped name of a private delta is asked for only
there in the end. So a name without a source is not looked up in a public source if its namespace is private: a private
source has a delta in it, or in a similarly named one; something in it was pulled from a private source; or it is this user's own
(`DELTAHUB_NAMESPACE`). It is looked up there if the namespace is known to be there too: the user bound it to the public source,
or pulled something in it from there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from deltahub.cache.names import CachedNames
from deltahub.errors import NotFoundError
from deltahub.reference import Reference
from deltahub.sources.base import Source
from deltahub.sources.choosing import Choice

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
        namespace = reference.namespace
        if near:
            place, names = next(iter(near.items()))
            return f"{names[0].partition('/')[0]} is a namespace of {place}"
        own = os.environ.get("DELTAHUB_NAMESPACE", "")
        if namespace.lower() == own.lower():
            return f"{namespace} is your own namespace (DELTAHUB_NAMESPACE)"
        private = sorted(self._names.sources(namespace) - {*self._choice.rules.public})
        return f"{namespace} is a namespace of {private[0]}, from which it was pulled before" if private else None
