"""The documents of a hub in its registry's store, under `hub/`: tokens, records of repositories, uploads under way.

Each is sealed, like a reference document, and contains its own key. So every read detects a flipped bit, and also a document
under the wrong key; neither ever grants anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from deltahub.errors import DeltaHubError, IntegrityError, outcome
from deltahub.files.documents import parse_stored, with_checksum
from deltahub.stores.base import Store
from deltahub.stores.threads import map_concurrently

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class Kind:
    """One kind of document.

    Attributes:
        prefix: the common prefix of its keys.
        schema: the name of its schema.
        subject: a name for one document, for messages.
        remedy: the advice if one is damaged.
    """

    prefix: str
    schema: str
    subject: str
    remedy: str

    def read(self, store: Store, key: str) -> tuple[dict[str, Any], str] | None:
        """Return a document's content and etag; None if it does not exist.

        Raises:
            IntegrityError: it is damaged.
            StorageError: the store is out of reach.
        """
        stored = store.read_tagged(key)
        return (self.parse(key, stored[0]), stored[1]) if stored else None

    def parse(self, key: str, data: bytes) -> dict[str, Any]:
        """Return a document's content.

        Args:
            key: the key that it was read from.

        Raises:
            IntegrityError: it is damaged, or belongs under another key.
        """
        document, wrong = parse_stored(data, self.schema)
        if wrong is None and document["key"] != key:
            wrong = f"the one of {document['key']}"
        if wrong:
            raise IntegrityError(key, self.subject, wrong, self.remedy)
        return {name: value for name, value in document.items() if name not in ("schema_version", "key", "checksum")}

    def write(self, store: Store, key: str, values: Mapping[str, Any], etag: str | None) -> None:
        """Swap a document.

        Args:
            values: its new content.
            etag: the etag of the current document; None if there is none.

        Raises:
            ConflictError: it changed meanwhile.
        """
        store.swap(key, with_checksum({"schema_version": SCHEMA_VERSION, "key": key, **values}), etag)

    def damages(self, store: Store) -> Iterator[tuple[str, DeltaHubError]]:
        """Iterate over the keys of all unreadable documents of this kind, each with its error."""
        keys = [key for key, _ in store.keys(self.prefix)]
        read = map_concurrently(lambda key: outcome(partial(self.read, store, key)), keys, store.at_once)
        for key, document in zip(keys, read, strict=True):
            if isinstance(document, DeltaHubError):
                yield key, document


TOKENS: Final = Kind(
    "hub/tokens/",
    "token.v1",
    "a token's document",
    "It is refused. Delete that key, and make a new token: deltahub serve token create",
)
REPOSITORIES: Final = Kind(
    "hub/repos/",
    "repository.v1",
    "the record of a repository",
    "Restore that key from a copy, or delete it: then the repository is public.",
)
UPLOADS: Final = Kind(
    "hub/uploads/",
    "upload.v1",
    "the record of a file that was uploaded",
    "Upload the file again, or remove the record: deltahub gc",
)
PARTS: Final = Kind(
    "hub/parts/",
    "part.v1",
    "the record of a part of a file",
    "Upload the file again, or remove the record: deltahub gc",
)
KEYS: Final = Kind(
    "hub/keys/",
    "upload_key.v1",
    "the key that signs addresses for uploads",
    "Delete it: a new one is made, and addresses that were signed with this one are good no longer.",
)
SESSIONS: Final = Kind(
    "hub/sessions/",
    "session.v1",
    "a sign-in of a browser",
    "It is refused. Delete that key, and sign in again.",
)
WEBHOOKS: Final = Kind(
    "hub/webhooks/",
    "webhook.v1",
    "a webhook",
    "Nothing is sent for it. Delete that key, and create the webhook again.",
)
PROMOTION: Final = Kind(
    "promotion/",
    "promotion.v1",
    "the rules of promotion",
    "No alias moves until then. Restore that key from a copy, or delete it: then nothing is protected.",
)
DELIVERIES: Final = Kind(
    "hub/deliveries/",
    "deliveries.v1",
    "the state of the deliveries to a webhook",
    "Delete that key: what happened since the webhook was made is sent again.",
)
QUOTAS: Final = Kind(
    "hub/quotas/",
    "quota.v1",
    "the quota of a namespace",
    "Nothing is published in the namespace meanwhile. Delete that key, and set the quota again: deltahub serve quota set",
)
ACCESS: Final = Kind(
    "hub/access/",
    "access.v1",
    "the list of requests for a gated repository",
    "Nobody is on it. Delete that key, and grant the access again.",
)
KINDS: Final = (TOKENS, REPOSITORIES, UPLOADS, PARTS, KEYS, SESSIONS, WEBHOOKS, PROMOTION, DELIVERIES, QUOTAS, ACCESS)


def repository_key(path: str) -> str:
    """Return the key of a repository's record, for the path ``"namespace/name"``."""
    return f"{REPOSITORIES.prefix}{path}.json"


def damages(store: Store) -> Iterator[tuple[str, DeltaHubError]]:
    """Iterate over the keys of all unreadable documents of a hub, each with its error."""
    for kind in KINDS:
        yield from kind.damages(store)
