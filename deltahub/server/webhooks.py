"""Webhooks: addresses that their owners want to be called when something they watch changes.

A webhook belongs to the name of a token. Its document, ``hub/webhooks/OWNER/ID.json``, is all that a delivery needs: the
address, the watched namespaces and repositories, the secret, and the id of the token whose rights apply.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from deltahub.registry.hub_records import WEBHOOKS
from deltahub.server.documents import Documents
from deltahub.stores.base import Store

WatchedType = Literal["model", "org", "user"]
WATCHED: Final[tuple[WatchedType, ...]] = ("model", "org", "user")
DOMAINS: Final = ("repo", "discussion")  # this hub has no discussions, but clients name both by default
MOST: Final = 100  # webhooks per owner


@dataclass(frozen=True)
class Watched:
    """Something that a webhook watches.

    Attributes:
        type: ``"model"`` for one repository; ``"org"`` and ``"user"`` for a namespace.
        name: ``"namespace/name"``, or the namespace.
    """

    type: WatchedType
    name: str

    def covers(self, repository: str) -> bool:
        """Return whether a change of a repository, ``"namespace/name"``, is watched."""
        name = repository if self.type == "model" else repository.partition("/")[0]
        return name.lower() == self.name.lower()


@dataclass(frozen=True)
class Webhook:
    """A webhook.

    Attributes:
        id: 24 hex digits.
        owner: name of the token that created it.
        token: id of the token that created or last changed it. A delivery may name only what this token may read.
        url: where to send changes, http or https.
        watched: what it watches.
        domains: ``"repo"``, ``"discussion"`` or both.
        secret: shared with the receiver; None for none.
        disabled: whether nothing is sent.
        created: ISO 8601 in UTC.
    """

    id: str
    owner: str
    token: str
    url: str
    watched: tuple[Watched, ...]
    domains: tuple[str, ...]
    secret: str | None
    disabled: bool
    created: str

    def covers(self, repository: str) -> bool:
        """Return whether a change of a repository, ``"namespace/name"``, is to be sent."""
        return not self.disabled and "repo" in self.domains and any(item.covers(repository) for item in self.watched)


class Webhooks:
    """All webhooks of a hub.

    Args:
        store: of its registry.
    """

    def __init__(self, store: Store) -> None:
        self._documents: Documents[Webhook] = Documents(store, WEBHOOKS, _load, asdict)

    def all(self) -> list[Webhook]:
        """Return every webhook."""
        return self._documents.all()

    def of(self, owner: str) -> list[Webhook]:
        """Return the webhooks of an owner, oldest first."""
        return sorted(self._documents.all(f"{owner}/"), key=lambda webhook: (webhook.created, webhook.id))

    def find(self, owner: str, number: str) -> Webhook | None:
        """Return one of an owner's webhooks by its id; None if it does not exist."""
        return self._documents.find(f"{owner}/{number}")

    def save(self, webhook: Webhook) -> Webhook:
        """Store a new webhook."""
        return self._documents.change(f"{webhook.owner}/{webhook.id}", lambda _: webhook)

    def change(self, owner: str, number: str, change: Callable[[Webhook | None], Webhook]) -> Webhook:
        """Change one of an owner's webhooks."""
        return self._documents.change(f"{owner}/{number}", change)

    def delete(self, owner: str, number: str) -> None:
        """Remove one of an owner's webhooks; a missing one is fine."""
        self._documents.delete(f"{owner}/{number}")


def new_id() -> str:
    """Return a random id."""
    return secrets.token_hex(12)


def _load(values: dict[str, Any]) -> Webhook:
    watched: Collection[dict[str, Any]] = values["watched"]
    items = tuple(Watched(item["type"], item["name"]) for item in watched)
    return Webhook(**{**values, "watched": items, "domains": tuple(values["domains"])})
