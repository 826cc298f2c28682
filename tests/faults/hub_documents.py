"""One document of each kind that a hub keeps, made as a hub makes them, and ways to damage it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

from deltahub.files.atomic import sha256_file
from deltahub.registry import uploads
from deltahub.registry.actor import Actor
from deltahub.registry.hub_records import ACCESS, Kind
from deltahub.registry.promotion.policy import Policy, write_policy
from deltahub.registry.registry import Registry
from deltahub.server.deliveries import Deliveries, deliveries
from deltahub.server.quotas import Quotas
from deltahub.server.records import Record, Records
from deltahub.server.sessions import Sessions
from deltahub.server.tokens import Tokens
from deltahub.server.upload_urls import Signer
from deltahub.server.webhooks import Watched, Webhook, Webhooks
from deltahub.stores.base import Store

PART: Final = ("acme/plan", "1" * 64, 1)  # the delta, the sha256 of the whole file, and the number of the part
S = TypeVar("S", bound=Store)


def store_one_of_each(store: S, file: Path) -> S:
    """Put a token, a session, a webhook, a private repository, rules, a quota, an upload of one part and a key for addresses into a store.

    Args:
        file: the part.
    """
    token, _ = Tokens(store).create("ci", "write", ["acme"])
    Sessions(store).create(token.id)
    Records(store).change("acme/plan", lambda _: Record("2026-01-02T03:04:05Z", "ada", private=True))
    Signer(store).signed("", {})
    watched, time = (Watched("org", "acme"),), "2026-01-02T03:04:05Z"
    request = {"id": "0" * 24, "user": "ada", "status": "pending", "time": time, "reason": None}
    ACCESS.write(store, f"{ACCESS.prefix}acme/plan.json", {"born": time, "requests": [request]}, None)
    Webhooks(store).save(
        Webhook("0" * 24, "ci", token.id, "https://example.org", watched, ("repo",), None, disabled=False, created=time)
    )
    deliveries(store).change(f"ci/{'0' * 24}", lambda _: Deliveries({"1" * 32: 1}, delivered=1))
    rules = Policy.parse({"rules": [{"deltas": "acme/*", "aliases": ["prod"], "approvals": 1}]})
    write_policy(store, rules, Actor("root", "admin"))
    Quotas(Registry(store)).set("acme", 1000, None)
    uploads.keep_part(store, *PART, sha256_file(file)[0], file, "ada")
    return store


def key_of(store: Store, kind: Kind) -> str:
    """The key of the only document of a kind."""
    ((key, _),) = store.keys(kind.prefix)
    return key


def replace(store: Store, key: str, data: bytes) -> None:
    """Put other bytes in the place of a document."""
    tagged = store.read_tagged(key)
    store.swap(key, data, tagged[1] if tagged else None)


def flipped(data: bytes, step: int = 1) -> Iterator[bytes]:
    """Bytes with one bit flipped, each bit in turn, or one of every `step`."""
    for bit in range(0, 8 * len(data), step):
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        yield bytes(other)
