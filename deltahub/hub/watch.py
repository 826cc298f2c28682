"""Events of deltas as they happen, in a registry without a hub too: its documents are read again and again."""

from __future__ import annotations

from collections.abc import Iterator

from deltahub.errors import ConfigError, NotFoundError
from deltahub.hub.hub import Hub
from deltahub.reference import Reference, check_name
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.events import Event, events_of, identity
from deltahub.registry.registry import REFS, Registry
from deltahub.sources.base import Source
from deltahub.sources.registry import RegistrySource


class Watch:
    """The events of one delta, or of all deltas of a namespace in a registry, that happen after this was made.

    Args:
        hub: the sources.
        target: ``"[source:]namespace/name"`` or ``"[source:]namespace"``.

    Raises:
        NotFoundError: no source has the delta.
        ConfigError: a namespace of a hub is to be watched, which webhooks do.
        UnreachableError: the source does not answer.
    """

    def __init__(self, hub: Hub, target: str) -> None:
        self._stamps: dict[str, str] = {}  # of the documents of a namespace
        self._positions: dict[str, int] = {}  # how many entries of each log are known, by `identity`
        self._source, self._registry, self._name = _watched(hub, target)
        for document in self._changed():
            self._positions[identity(document)] = len(document.log)

    def poll(self) -> Iterator[Event]:
        """Iterate over the events since the last call, oldest first for each delta; one counts as seen once the next is asked for.

        Raises:
            UnreachableError: the source does not answer; the next call gives the events of this time too.
        """
        for document in self._changed():
            key = identity(document)
            for event in events_of(document, self._positions.get(key, 0)):
                yield event
                self._positions[key] = event.number + 1

    def _changed(self) -> Iterator[ReferenceDocument]:
        """Iterate over the watched deltas that may have changed since the last call."""
        if self._registry is None:
            document: ReferenceDocument | None = self._source.document(Reference.parse(self._name).path)
            if document and document.log:
                yield document
            return
        for key, stamp in list(self._registry.store.keys(f"{REFS}{self._name}/")):
            if self._stamps.get(key) != stamp and key.endswith(".json"):
                document = self._registry.stored(key[len(REFS) :].removesuffix(".json"))
                if document is not None and document.log and not document.moved_to:
                    yield document
                self._stamps[key] = stamp


def _watched(hub: Hub, target: str) -> tuple[Source, Registry | None, str]:
    """Return the source of a target, its registry for a namespace, and the name of the delta or the namespace."""
    source_name, _, name = target.rpartition(":")
    if "/" in name:
        reference = Reference.parse(target)
        if reference.version:
            raise ConfigError("All versions of a delta are watched. Leave out '@...'.")
        source, document = hub.document(reference)
        return source, None, document.name
    source = hub.source(source_name or None)
    if not isinstance(source, RegistrySource):
        msg = f"{source.place} is a hub: watch single deltas of it, or give it a webhook for the namespace {name}."
        raise ConfigError(msg)
    check_name(name, "namespace")
    if not any(child == f"{name}/" for child in source.registry.store.children(REFS)):
        raise NotFoundError(f"The namespace {name}", (source.place,))
    return source, source.registry, name
