"""Reading of changed documents into a catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from deltahub.errors import CheckpointError, DeltaHubError, Outcome, UnreachableError, outcome
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import RECORD, record_of
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.search.contents import Contents
from deltahub.registry.search.entry import CatalogueEntry
from deltahub.stores.threads import map_concurrently

MANY: Final = 5_000  # number of documents that takes some seconds to read

# Called with the number of documents read, and the number to read as far as known.
Told = Callable[[int, int], None]


def read_documents(
    contents: Contents, registry: Registry, stamps: Mapping[str, str | None], report: Told | None
) -> set[str]:
    """Put documents into the catalogue, which must not have them, and return the keys of unreadable ones.

    Args:
        stamps: their keys and stamps; None for the etag with which a document is read.
        report: called before each document.
    """
    if len(stamps) >= MANY:
        from deltahub.log import LOGGER  # late: hardly ever needed

        LOGGER.info(
            "Reading %s deltas of %s into the search index; from then on only what changed is read.",
            f"{len(stamps):,}",
            registry.place,
        )
    unread = set()

    def read(key: str) -> Outcome[tuple[bytes, str] | None]:
        stored = outcome(lambda: registry.store.read_tagged(key))
        if isinstance(stored, UnreachableError):
            raise stored
        return stored

    for number, (key, stored) in enumerate(
        zip(stamps, map_concurrently(read, stamps, registry.store.at_once), strict=True)
    ):
        if report:
            report(number, len(stamps))
        if stored is None:  # deleted since it was listed
            continue
        try:
            if isinstance(stored, DeltaHubError):
                raise stored
            document = _document(key, stored[0])
        except DeltaHubError as error:  # a damaged or unreadable document must not hide the others
            from deltahub.log import LOGGER

            LOGGER.warning("%s cannot be listed: %s", key, error)
            unread.add(key)
            continue
        stamp = stamps[key]
        entry = CatalogueEntry.of(document, _record(registry, document))
        contents.remember(key, stored[1] if stamp is None else stamp, entry)
    return unread


def _document(key: str, data: bytes) -> ReferenceDocument:
    path = key[len(REFS) : -len(".json")]
    document = ReferenceDocument.from_bytes(data, path)
    if document.name != path:  # a copied file: no command finds a delta there
        msg = f"It is the reference document of {document.name}. Remove it, or push to {path} under its own name."
        raise CheckpointError(msg)
    return document


def _record(registry: Registry, document: ReferenceDocument) -> str | None:
    """Return the sha256 of the newest version's backbone record; if the summary lacks it, it is read once from the manifest."""
    if not document.versions:
        return None
    entry = document.versions[document.latest]
    if RECORD in entry.summary:
        said = entry.summary[RECORD]
        return said if isinstance(said, str) else None
    try:
        return record_of(registry.manifest(entry.digest))
    except DeltaHubError:  # damaged: `verify` reports it
        return None
