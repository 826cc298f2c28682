"""Changes to deltas by reference, wherever they are: in a registry, behind a hub, or in a repo of another hub as far as it goes."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from deltahub.errors import ConflictError, ReferenceSyntaxError
from deltahub.hub.hub import Hub
from deltahub.reference import Digest, Reference, check_alias, check_tag
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.editor import Edited, Editor
from deltahub.registry.edits import ANYTHING, Anything
from deltahub.registry.entries import Move
from deltahub.sources.base import Source, editor_of

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Changed:
    """The result of a change.

    Attributes:
        reference: the delta, with its source and what was changed: a version or an alias.
        document: its reference document after the change.
        undone: the move that was undone, by `undo` alone.
    """

    reference: Reference
    document: ReferenceDocument
    undone: Move | None = None

    @property
    def target(self) -> str | None:
        """The version that the changed alias points to now; None if it was removed."""
        return self.document.aliases.get(self.reference.version or "")


def set_alias(
    hub: Hub,
    reference: Reference,
    alias: str,
    *,
    remove: bool = False,
    expect: str | Anything | None = ANYTHING,
    reason: str = "",
) -> Changed:
    """Point an alias to a version, by default the newest, or remove it.

    Args:
        remove: remove the alias; if the reference has a version, only if it points there.
        expect: the version that it must point to now, None if it must not exist; by default where it is seen to point.
        reason: why, for the log.

    Raises:
        ConflictError: it points elsewhere, or was moved concurrently. Nothing was changed.
        NotFoundError: no source has the delta or the version, or the alias to remove does not exist.
        ConfigError: the first source that has the delta does not keep such changes.
    """
    check_alias(alias)
    source, document, editor = _found(hub, reference)
    version = resolve(document, reference.version)
    seen = document.aliases.get(alias)
    if remove and reference.version and seen and seen != version:
        raise ConflictError(f"The alias {document.name}@{alias}", version, seen)
    now = seen if isinstance(expect, Anything) else expect
    edited = editor.set_alias(document.name, alias, None if remove else version, expect=now, reason=reason)
    return _changed(source, edited, alias)


def undo(hub: Hub, reference: Reference, alias: str | None = None, *, reason: str = "") -> Changed:
    """Undo the last move of an alias, by default of the one that moved last.

    Raises:
        NotFoundError: no source has the delta, or no move is left.
        ConflictError: an alias was moved concurrently. Nothing was changed.
        ConfigError: the first source that has the delta does not keep such changes.
    """
    source, document, editor = _found(hub, reference)
    edited = editor.undo(document.name, alias, reason=reason)
    return _changed(source, edited, edited.undone.what if edited.undone else alias)


def set_tags(hub: Hub, reference: Reference, add: Collection[str] = (), remove: Collection[str] = ()) -> Changed:
    """Add and remove tags of a version, by default the newest.

    Raises:
        NotFoundError: no source has the delta or the version, or it lacks a tag to remove.
        ConfigError: the first source that has the delta does not keep such changes.
    """
    add = [*map(check_tag, add)]
    source, document, editor = _found(hub, reference)
    edited = editor.set_tags(document.name, resolve(document, reference.version), add, remove)
    return _changed(source, edited, edited.version)


def remove(hub: Hub, reference: Reference, *, message: str = "", needed: Collection[Digest] = ()) -> Changed:
    """Remove one version.

    Args:
        message: the reason, shown to those who ask for it later.
        needed: digests that must stay, such as those of a lock file.

    Raises:
        InUseError: an alias or a branch points to it, or its digest is needed. Nothing was changed.
        NotFoundError: no source has the delta or the version.
        ConfigError: the first source that has the delta does not keep such changes.
    """
    if reference.version is None:
        msg = f"Say which version of {reference.path} is to go, e.g. {reference.path}@v1; `deltahub log` lists them."
        raise ReferenceSyntaxError(msg)
    source, document, editor = _found(hub, reference)
    edited = editor.remove(document.name, resolve(document, reference.version), message=message, needed=needed)
    return _changed(source, edited, edited.version)


def ask(hub: Hub, reference: Reference, alias: str, reason: str, *, remove: bool = False) -> tuple[Changed, str]:
    """Ask others to approve the move of a protected alias to a version, by default the newest, or its removal.

    Returns:
        The result, and the id of the request.

    Raises:
        RefusedMoveError: this user may not ask for it, or the version does not meet the rules.
        ConfigError: the alias needs no approval.
    """
    source, document, editor = _found(hub, reference)
    version = None if remove else resolve(document, reference.version)
    edited = editor.ask(document.name, check_alias(alias), version, reason)
    return _changed(source, edited, alias), edited.request or ""


def approve(hub: Hub, reference: Reference, request: str) -> Changed:
    """Approve a request for a move; the last approval that it needs makes the move.

    Raises:
        NotFoundError: the request does not exist; it may be void, as its alias moved meanwhile.
        RefusedMoveError: this user asked for it, or may not approve it.
    """
    source, document, editor = _found(hub, reference)
    alias = document.requests[request].alias if request in document.requests else None
    return _changed(source, editor.approve(document.name, request), alias)


def reject(hub: Hub, reference: Reference, request: str, reason: str = "") -> Changed:
    """End a request for a move: by who asked, or by any who may approve it.

    Raises:
        NotFoundError: the request does not exist.
        RefusedMoveError: this user may not reject it.
    """
    source, document, editor = _found(hub, reference)
    alias = document.requests[request].alias if request in document.requests else None
    return _changed(source, editor.reject(document.name, request, reason), alias)


def record_probe(hub: Hub, reference: Reference) -> Changed:
    """Record that a version gives the outputs saved with it, as this user found by running it.

    Raises:
        NotFoundError: no source has the delta or the version.
    """
    source, document, editor = _found(hub, reference)
    edited = editor.record_probe(document.name, resolve(document, reference.version))
    return _changed(source, edited, edited.version)


def rename(hub: Hub, old: Reference, new: Reference) -> tuple[Changed, str]:
    """Rename a delta; the old name then redirects to the new one.

    Returns:
        The result, and the name before.

    Raises:
        InUseError: the new name is taken. Nothing was changed.
        NotFoundError: no source has the delta.
        ReferenceSyntaxError: a reference has a version, or the new one another source.
        ConfigError: the first source that has the delta does not keep such changes.
    """
    if old.version or new.version:
        raise ReferenceSyntaxError("All versions of a delta have one name. Leave out '@...'.")
    source, document, editor = _found(hub, old)
    if new.source not in (None, source.name):
        msg = (
            f"{old} is in {source.name}, and a name stays in its registry. Leave out {new.source!r}, or copy it there."
        )
        raise ReferenceSyntaxError(msg)
    edited = editor.rename(document.name, new.path)
    return _changed(source, edited, None), document.name


def resolve(document: ReferenceDocument, version: str | None) -> str:
    """Return the version that a reference means in a document; the commit of a hub's repo has the digest of its version."""
    by_commit = version if version is None or not _COMMIT.fullmatch(version) else f"sha256:{version}"
    return document.resolve(by_commit)


def _found(hub: Hub, reference: Reference) -> tuple[Source, ReferenceDocument, Editor]:
    source, document = hub.document(reference)
    return source, document, editor_of(source, document.name)


def _changed(source: Source, edited: Edited, version: str | None) -> Changed:
    return Changed(Reference(edited.document.name, source=source.name, version=version), edited.document, edited.undone)
