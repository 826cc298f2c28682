"""Resolution of references over all sources.

A name without a source is looked up in one source after the other, and the first that has it wins. A private name is not
looked up in a public source (`private_names`). A source that does not answer ends the search: it may have a delta of that name, and
no other source replaces it. Without the network, a reference has the meaning of its last pull by that name.

A version keeps its digest for ever. If a source returns other content for a version than before, it is refused; if an alias or
"latest" moved to an older version than before, a warning is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from deltahub.cache.remembered import CachedNames, Meaning
from deltahub.checkpoint.manifest import FileEntry
from deltahub.errors import (
    ConfigError,
    DeltaHubError,
    IntegrityError,
    NotCachedError,
    NotFoundError,
    NoVersionError,
    RemovedError,
    UnreachableError,
)
from deltahub.hub.private_names import PrivateNames
from deltahub.link import Link
from deltahub.log import LOGGER
from deltahub.reference import Digest, Reference, is_digest, is_version
from deltahub.registry.commit_message import CommitDigest, commit_id
from deltahub.registry.entries import Version, number
from deltahub.sources.base import Resolved, Source
from deltahub.sources.catalog import Choice
from deltahub.stores.base import Progress

T = TypeVar("T")
_BACK: Final = "It went back."
_NEAR: Final = 5  # the most similar names in a message


class Resolver:
    """Resolver of references.

    Args:
        choice: the sources.
        names: the meanings of references at their last pull.
        trusted_keys: returns the keys of which a source requires a signature; empty if it requires none.
    """

    def __init__(self, choice: Choice, names: CachedNames, trusted_keys: Callable[[str | None], Sequence[str]]) -> None:
        self._choice = choice
        self._names = names
        self._trusted_keys = trusted_keys
        self._private = PrivateNames(choice, names)

    def ask(
        self, reference: Reference | Link, ask: Callable[[Source], T], recall: Callable[[Meaning], T] | None = None
    ) -> T:
        """Return an answer from the source of a delta: the named one, or else the first that has it.

        Args:
            ask: asks one source.
            recall: makes the answer from the meaning of the reference at its last pull; None if that is not acceptable.

        Raises:
            NotFoundError: no source has it; the message lists the searched places and the nearest names.
            NotCachedError: the network may not be used, and it was never pulled by this name.
            UnreachableError: a source that may have it does not answer, and it was never pulled by this name.
        """
        misses: list[NotFoundError] = []
        asked_sources: list[Source] = []
        for source in self._choice.candidates(reference):
            if reason := self._choice.forbidden(source):
                if recall and (meaning := self._recalled(reference)):
                    LOGGER.info("%s, so %s is what it was when last pulled: %s", reason, reference, meaning.reference)
                    return recall(meaning)
                raise self._not_cached(reference, source, reason, misses)
            if (name := reference.unplaced) and (withheld := self._private.withheld(name, source, asked_sources)):
                misses.append(withheld)
                continue
            try:
                return ask(source)
            except UnreachableError as error:
                if recall and (meaning := self._recalled(reference)):
                    LOGGER.warning(
                        "%s Until then %s is what it was when last pulled: %s", error, reference, meaning.reference
                    )
                    return recall(meaning)
                raise _stopped(reference, source, error, _nearest(misses)) from error
            except (NoVersionError, RemovedError):
                raise
            except NotFoundError as error:
                misses.append(error)
                asked_sources.append(source)
        raise NotFoundError(f"The delta {reference}", _places(misses), _nearest(misses))

    def resolve(
        self, reference: Reference | Link, *, fresh: bool = False, progress: Progress | None = None
    ) -> Resolved:
        """Return the version that a reference means.

        Args:
            fresh: do not fall back to the meaning at its last pull.
            progress: see `Source.resolve`.

        Raises:
            NotFoundError: no source has it, or the first that has it lacks the version.
            IntegrityError: the manifest is damaged, or this version had other content when it was last pulled.
            ConfigError: it came from one of the user's own sources before, and now only a public one has it.
        """
        recall = None if fresh else self._from_cache
        resolved = self.ask(reference, lambda source: source.resolve(reference, progress), recall)
        if isinstance(reference, Reference):  # a link has no history
            if reference.source is None:
                self._compare_origin(reference, resolved)
            self._compare_versions(reference, resolved)
        return resolved

    def remember(self, reference: Reference | Link, resolved: Resolved) -> None:
        """Record the current meaning of a reference or a link."""
        place = self._choice.source_of(resolved.reference).place
        self._names.remember(reference, Meaning(resolved.reference, resolved.digest, place))

    def _recalled(self, reference: Reference | Link) -> Meaning | None:
        """Return the meaning of a reference at its last pull, if its source is still in use and the delta is cached."""
        meaning = self._names.recall(reference)
        if meaning is None or self._names.manifest(meaning.digest) is None:
            return None
        name = meaning.reference.source
        source = next((candidate for candidate in self._choice.candidates(reference) if candidate.name == name), None)
        return meaning if source and source.place == meaning.place else None

    def _from_cache(self, meaning: Meaning) -> Resolved:
        manifest = self._names.manifest(meaning.digest)
        assert manifest is not None
        exact = meaning.reference

        def fetch(entry: FileEntry, into: Path, progress: Progress | None) -> None:
            source = self._choice.source_of(exact)
            if reason := self._choice.forbidden(source):
                raise self._not_cached(exact, source, f"It is damaged in the cache. {reason}", [])
            msg = f"{exact} is damaged in the cache, and {source.place} gives no answer. Repeat later."
            raise UnreachableError(msg)

        return Resolved(exact, meaning.digest, manifest, fetch)

    def _compare_origin(self, reference: Reference, resolved: Resolved) -> None:
        """Warn if a name comes from another place than before; refuse it if that is a public source where anybody may take the name."""
        exact = _exact(resolved.reference)
        previous_meaning = self._names.origin(reference.path)
        place = self._choice.source(exact.source).place
        if previous_meaning is None or previous_meaning.place == place or previous_meaning.digest == resolved.digest:
            return
        previous, public = _exact(previous_meaning.reference), self._choice.rules.public
        summary = f"{reference.path} came from {previous_meaning.place} when it was last pulled by this name, and comes from {place} now."
        if exact.source in public and previous.source not in public:
            msg = (
                f"{summary} Anybody can take a name there, so it does not take the other's place. "
                f"If it is what you mean, name it: {exact.source}:{reference.anywhere()}"
            )
            raise ConfigError(msg)
        LOGGER.warning("%s Name the source to be sure, or lock it: deltahub lock %s", summary, previous.at(None))

    def _compare_versions(self, reference: Reference, resolved: Resolved) -> None:
        """Refuse a version with other content than before; warn of an alias or "latest" that went back.

        A reference with a digest chooses the content, and from then on the version means that.
        """
        version, exact = reference.version, _exact(resolved.reference)
        if version and is_digest(version):
            return
        source = self._choice.source(exact.source)
        is_movable = not (version and is_version(version))
        for name in (exact, replace(reference, source=exact.source), reference.anywhere()):
            previous_meaning = self._names.recall(name)
            if previous_meaning is None or previous_meaning.place != source.place:
                continue
            if previous_meaning.digest != resolved.digest and not (is_movable and name is not exact):
                raise _changed(name, previous_meaning, resolved)
            previous = _exact(previous_meaning.reference)
            if previous.path == exact.path and (step_back := _went_back(source, previous_meaning, resolved)):
                if self._trusted_keys(exact.source):
                    self._refuse_earlier_copy(exact, previous)
                LOGGER.warning(
                    "%s is %s now; it was %s when it was last pulled. %s", reference, exact, previous, step_back
                )
                return

    def _refuse_earlier_copy(self, exact: Reference, previous: Reference) -> None:
        """Refuse a document without a version that was pulled before: signatures do not tell an old document from a new one."""
        document = self._choice.source(exact.source).document(exact.path)
        if previous.version not in {*document.versions, *document.removed}:
            remedy = (
                "An earlier copy of its document was put back. Ask its owner. If it was restored on purpose, pull a version "
                f"by its digest: deltahub pull {exact.at(document.versions[exact.version or ''].digest)}"
            )
            actual = f"{exact}, and nothing about {previous.version}"
            raise IntegrityError(f"The history of {exact.path}", str(previous), actual, remedy)

    def _not_cached(
        self, reference: Reference | Link, source: Source, why: str, misses: list[NotFoundError]
    ) -> NotCachedError:
        places = (*_places(misses), f"what was pulled from {source.place}")
        near = dict.fromkeys((*_nearest(misses), *self._names.near(reference.path)))
        return NotCachedError(f"The delta {reference}", places, tuple(near), str(reference), why)


def _exact(reference: object) -> Reference:
    assert isinstance(reference, Reference)  # links are stored separately
    return reference


def _went_back(source: Source, previous_meaning: Meaning, resolved: Resolved) -> str | None:
    """Return a sentence if a version precedes the earlier one, else None; a hub with commits is asked for their order."""
    version, previous_version = str(_exact(resolved.reference).version), str(_exact(previous_meaning.reference).version)
    if is_version(version) and is_version(previous_version):
        return _BACK if number(version) < number(previous_version) else None
    if version == previous_version or previous_meaning.digest == resolved.digest:
        return None
    try:
        entries = [*source.document(_exact(resolved.reference).path).versions.values()]
    except DeltaHubError:  # the order is unknown
        return None
    position, previous_position = (
        _place(entries, version, resolved.digest),
        _place(entries, previous_version, previous_meaning.digest),
    )
    if position is None:  # on another branch
        return None
    if previous_position is None:
        return "Its history was rewritten, and that is not in it any more."
    return _BACK if position < previous_position else None


def _place(entries: Sequence[Version], commit: str, digest: Digest) -> int | None:
    """Return the position of a commit among a delta's versions, oldest first; None if it is not among them."""
    names = {digest, CommitDigest(commit)}
    positions = [
        position for position, entry in enumerate(entries) if entry.digest in names or commit_id(entry.digest) == commit
    ]
    return positions[-1] if positions else None


def _changed(name: Reference, previous_meaning: Meaning, resolved: Resolved) -> IntegrityError:
    exact = _exact(resolved.reference)
    remedy = (
        "A version keeps its digest for ever, and this one had another when it was last pulled: the delta was deleted and "
        "made anew, or an old copy of its registry was restored. Ask its owner. If the new content is right, pull it by "
        f"its digest: deltahub pull {exact.at(resolved.digest)}"
    )
    return IntegrityError(f"The history of {name}", previous_meaning.digest, resolved.digest, remedy)


def _stopped(
    reference: Reference | Link, source: Source, error: UnreachableError, near: tuple[str, ...]
) -> UnreachableError:
    if reference.source:
        return error
    close = f" The nearest names elsewhere are: {', '.join(near)}." if near else ""
    msg = (
        f"{error} {reference} may be there, so it is looked for nowhere else.{close} Name the source that you mean, "
        f"or turn this one off: deltahub source disable {source.name}"
    )
    return UnreachableError(msg)


def _places(misses: Iterable[NotFoundError]) -> tuple[str, ...]:
    return tuple(place for miss in misses for place in miss.looked_in)


def _nearest(misses: Iterable[NotFoundError]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for miss in misses for name in miss.nearest))[:_NEAR]
