"""The changes that a place with deltas can make to them, through one interface: a registry in this process, or a hub that serves one.

Both refuse with the same errors. A change that loses a race is made on top of the winner's, unless the winner moved the same alias:
then the loser gets the ConflictError.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from deltahub.reference import DeltaPath, Reference
from deltahub.registry import edits
from deltahub.registry.amend import Amendment, amend
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.edits import ANYTHING, Anything
from deltahub.registry.entries import Move
from deltahub.registry.promotion import requests
from deltahub.registry.registry import AlreadyMadeError, Registry
from deltahub.registry.rename import rename


@dataclass(frozen=True)
class Edited:
    """The result of a change.

    Attributes:
        document: the reference document after it.
        version: the version that was tagged, amended or removed; None for a change of an alias or a name.
        undone: the move that was undone, by `undo` alone.
        request: the id of the request for a move, by `ask` alone.
    """

    document: ReferenceDocument
    version: str | None = None
    undone: Move | None = None
    request: str | None = None


class Editor(Protocol):
    """A place whose deltas can be changed. Each method refuses with NotFoundError what the place does not have."""

    def set_alias(
        self,
        path: DeltaPath,
        alias: str,
        version: str | None,
        *,
        expect: str | Anything | None = ANYTHING,
        reason: str = "",
    ) -> Edited:
        """Point an alias to a version, or remove it with None: see `edits.set_alias`.

        Raises:
            ConflictError: it points elsewhere than expected, or was moved concurrently. Nothing was changed.
        """
        ...

    def undo(self, path: DeltaPath, alias: str | None = None, *, reason: str = "") -> Edited:
        """Undo the last move of an alias, or of any: see `edits.undo`.

        Raises:
            ConflictError: an alias was moved concurrently. Nothing was changed.
            RemovedError: the version that it pointed to was removed.
        """
        ...

    def set_tags(self, path: DeltaPath, version: str | None, add: Collection[str], remove: Collection[str]) -> Edited:
        """Add and remove tags of a version: see `edits.set_tags`."""
        ...

    def remove(
        self, path: DeltaPath, version: str | None, *, message: str = "", needed: Collection[str] = ()
    ) -> Edited:
        """Remove a version: see `edits.remove`.

        Raises:
            InUseError: an alias or a branch points to it, or its digest is needed. Nothing was changed.
            RemovedError: it was removed already.
        """
        ...

    def rename(self, path: DeltaPath, new: DeltaPath) -> Edited:
        """Rename a delta; the old name becomes a redirect.

        Raises:
            InUseError: the new name is taken. Nothing was changed.
        """
        ...

    def amend(self, path: DeltaPath, version: str | None, amendment: Amendment) -> Edited:
        """Amend the metadata of a version: see `deltahub.registry.amend`."""
        ...

    def ask(self, path: DeltaPath, alias: str, version: str | None, reason: str) -> Edited:
        """Ask others to approve the move of a protected alias: see `deltahub.registry.promotion.requests`.

        Raises:
            RefusedMoveError: this one may not ask for it, or the version does not meet the rules.
            ConfigError: the alias needs no approval.
        """
        ...

    def approve(self, path: DeltaPath, request: str) -> Edited:
        """Approve a request for a move; the last approval that it needs makes the move.

        Raises:
            RefusedMoveError: this one may not approve it.
        """
        ...

    def reject(self, path: DeltaPath, request: str, reason: str = "") -> Edited:
        """End a request for a move.

        Raises:
            RefusedMoveError: this one may not reject it.
        """
        ...

    def record_probe(self, path: DeltaPath, version: str | None) -> Edited:
        """Record that a version gives the outputs saved with it, as this one found by running it."""
        ...


class RegistryEditor:
    """The changes to a registry in this process.

    Args:
        registry: for changes in the name of its actor.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def set_alias(
        self,
        path: DeltaPath,
        alias: str,
        version: str | None,
        *,
        expect: str | Anything | None = ANYTHING,
        reason: str = "",
    ) -> Edited:
        """See `Editor.set_alias`."""
        return self._once(
            lambda: Edited(edits.set_alias(self._registry, path, alias, version, expect=expect, reason=reason))
        )

    def undo(self, path: DeltaPath, alias: str | None = None, *, reason: str = "") -> Edited:
        """See `Editor.undo`."""

        def change() -> Edited:
            document, move = edits.undo(self._registry, path, alias, reason=reason)
            return Edited(document, undone=move)

        return self._once(change)

    def set_tags(self, path: DeltaPath, version: str | None, add: Collection[str], remove: Collection[str]) -> Edited:
        """See `Editor.set_tags`."""
        return self._once(lambda: Edited(*edits.tagged(self._registry, path, version, add, remove)))

    def remove(
        self, path: DeltaPath, version: str | None, *, message: str = "", needed: Collection[str] = ()
    ) -> Edited:
        """See `Editor.remove`."""
        return self._once(lambda: Edited(*edits.remove(self._registry, path, version, message=message, needed=needed)))

    def rename(self, path: DeltaPath, new: DeltaPath) -> Edited:
        """See `Editor.rename`; a rename is done once by its nature."""
        return Edited(rename(self._registry, Reference(path), Reference(new)))

    def amend(self, path: DeltaPath, version: str | None, amendment: Amendment) -> Edited:
        """See `Editor.amend`."""
        return self._once(lambda: Edited(*amend(self._registry, path, version, amendment)))

    def ask(self, path: DeltaPath, alias: str, version: str | None, reason: str) -> Edited:
        """See `Editor.ask`."""

        def change() -> Edited:
            document, request = requests.ask(self._registry, path, alias, version, reason)
            return Edited(document, request=request)

        return self._once(change)

    def approve(self, path: DeltaPath, request: str) -> Edited:
        """See `Editor.approve`."""
        return self._once(lambda: Edited(requests.approve(self._registry, path, request)))

    def reject(self, path: DeltaPath, request: str, reason: str = "") -> Edited:
        """See `Editor.reject`."""
        return self._once(lambda: Edited(requests.reject(self._registry, path, request, reason)))

    def record_probe(self, path: DeltaPath, version: str | None) -> Edited:
        """See `Editor.record_probe`."""
        return self._once(lambda: Edited(*requests.record_probe(self._registry, path, version)))

    def _once(self, change: Callable[[], Edited]) -> Edited:
        """Make a change, or return the result that it had when it was requested before."""
        try:
            return change()
        except AlreadyMadeError as made:
            return _result(made.document, self._registry.actor.request)


def _result(document: ReferenceDocument, request: str) -> Edited:
    """Return the result of a request whose change a document holds."""
    at, move = next((at, move) for at, move in enumerate(document.log) if move.request == request)
    if move.action == "undo":
        swapped = (move.what, move.after, move.before)
        moves = (earlier for earlier in reversed(document.log[:at]) if earlier.action in ("alias", "unalias"))
        return Edited(
            document,
            undone=next(earlier for earlier in moves if (earlier.what, earlier.before, earlier.after) == swapped),
        )
    if move.action in ("tag", "untag"):
        return Edited(document, move.after)
    if move.action == "ask":
        return Edited(document, request=f"r{sum(earlier.action == 'ask' for earlier in document.log[: at + 1])}")
    return Edited(document, move.what if move.action in ("remove", "amend", "verify") else None)
