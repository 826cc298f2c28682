"""Quotas: the most bytes and deltas of a namespace.

A quota and the use of it are documents in the registry's store, `hub/quotas/<namespace>.json`, so that all processes count together. A push
first reserves its bytes by a compare-and-swap, then publishes, then turns the reservation into use; so two pushes at once never exceed the
quota. The reservation of a process that died counts for an hour. Removed versions are noticed when the space runs out: then everything
is counted anew, as it is by `deltahub serve quota list`.

The bytes of a version are those of all its files, also of those that other versions share.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

from deltahub.errors import DeltaHubError, NotFoundError
from deltahub.reference import check_name
from deltahub.registry import stamps
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.hub_records import QUOTAS
from deltahub.registry.registry import REFS, Registry
from deltahub.server.errors import Refusal
from deltahub.stores.retry import SwapRetry

_ABANDONED: Final = timedelta(hours=1)  # after which a reservation no longer counts


@dataclass(frozen=True)
class Usage:
    """The use of a namespace, or of one thing in it.

    Attributes:
        bytes: of the files of all versions.
        deltas: with at least one version.
    """

    bytes: int = 0
    deltas: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.bytes + other.bytes, self.deltas + other.deltas)


def usage_of(document: ReferenceDocument) -> Usage:
    """Return the use of one delta."""
    sizes = (int(entry.summary.get("size") or 0) for entry in document.versions.values())
    return Usage(sum(sizes), 1 if document.versions else 0)


@dataclass(frozen=True)
class Quota:
    """The quota of a namespace and the use of it.

    Attributes:
        namespace: the namespace.
        most_bytes: the most bytes; None for any number.
        most_deltas: the most deltas; None for any number.
        used: counted from the reference documents, and updated with every push through a hub.
        reserved: by pushes under way: id to the use, and the time when it was reserved.
    """

    namespace: str
    most_bytes: int | None
    most_deltas: int | None
    used: Usage = field(default_factory=Usage)
    reserved: Mapping[str, tuple[Usage, str]] = field(default_factory=dict)

    @property
    def taken(self) -> Usage:
        """All that is used or reserved."""
        return sum((usage for usage, _ in self.reserved.values()), self.used)

    def allows(self, more: Usage) -> bool:
        """Return whether there is room for more."""
        total = self.taken + more
        enough = self.most_bytes is None or total.bytes <= self.most_bytes or not more.bytes
        return enough and (self.most_deltas is None or total.deltas <= self.most_deltas or not more.deltas)

    def current(self, now: str) -> Quota:
        """Return the quota without the reservations of processes that died."""
        alive = {key: it for key, it in self.reserved.items() if not stamps.is_due(it[1], now, _ABANDONED)}
        return replace(self, reserved=alive)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        reserved = {
            key: {"bytes": usage.bytes, "deltas": usage.deltas, "time": time}
            for key, (usage, time) in self.reserved.items()
        }
        return {
            "namespace": self.namespace,
            "most_bytes": self.most_bytes,
            "most_deltas": self.most_deltas,
            "bytes": self.used.bytes,
            "deltas": self.used.deltas,
            "reserved": reserved,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Quota:
        """Read the JSON form."""
        reserved = {key: (Usage(it["bytes"], it["deltas"]), it["time"]) for key, it in stored["reserved"].items()}
        limits = (stored["most_bytes"], stored["most_deltas"])
        return cls(stored["namespace"], *limits, Usage(stored["bytes"], stored["deltas"]), reserved)


class Quotas:
    """The quotas of a registry's namespaces.

    Args:
        registry: the registry.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry, self._store = registry, registry.store

    def get(self, namespace: str) -> Quota | None:
        """Return the quota of a namespace; None if it has none.

        Raises:
            IntegrityError: it is damaged.
        """
        stored = self._read(namespace)
        return stored[0] if stored else None

    def all(self) -> list[Quota]:
        """Return every quota, counted anew, by namespace.

        Raises:
            IntegrityError: one is damaged, or a reference document is.
        """
        names = sorted(key[len(QUOTAS.prefix) :].removesuffix(".json") for key, _ in self._store.keys(QUOTAS.prefix))
        return [quota for name in names if (quota := self._recount(name)) is not None]

    def set(self, namespace: str, most_bytes: int | None, most_deltas: int | None) -> Quota:
        """Set the quota of a namespace. One that is already exceeded only keeps more from coming.

        Raises:
            ReferenceSyntaxError: the namespace is not well formed.
        """
        check_name(namespace, "namespace")
        retry = SwapRetry()
        while True:
            stored = self._read(namespace)
            old = stored[0] if stored else Quota(namespace, None, None)
            quota = replace(old, most_bytes=most_bytes, most_deltas=most_deltas, used=self._count(namespace))
            with retry:
                self._write(quota, stored[1] if stored else None)
                return quota

    def remove(self, namespace: str) -> None:
        """Remove the quota of a namespace.

        Raises:
            NotFoundError: it has none.
        """
        if self._store.read_tagged(_key(namespace)) is None:
            raise NotFoundError(f"The quota of {namespace}", (self._registry.place,))
        self._store.delete(_key(namespace))

    @contextlib.contextmanager
    def reserved(self, namespace: str, more: Usage) -> Iterator[None]:
        """Reserve room in a namespace while something is published; it is used afterwards, or given back after an error.

        Raises:
            Refusal: the namespace has no room.
        """
        reservation = uuid.uuid4().hex
        if not self._reserve(namespace, reservation, more):
            yield
            return
        try:
            yield
        except BaseException:
            with contextlib.suppress(DeltaHubError):  # the reservation then counts for an hour
                self._release(namespace, reservation, Usage())
            raise
        with contextlib.suppress(DeltaHubError):
            self._release(namespace, reservation, more)

    def _reserve(self, namespace: str, reservation: str, more: Usage) -> bool:
        """Reserve room; return False for a namespace without a quota.

        Raises:
            Refusal: there is no room.
        """
        counted = False
        retry = SwapRetry()
        while True:
            stored = self._read(namespace)
            if stored is None:
                return False
            now = stamps.now()
            quota = stored[0].current(now)
            if not quota.allows(more) and not counted:
                counted = True
                self._recount(namespace)
                continue
            if not quota.allows(more):
                raise _no_room(quota, more)
            with retry:
                self._write(replace(quota, reserved={**quota.reserved, reservation: (more, now)}), stored[1])
                return True

    def _release(self, namespace: str, reservation: str, used: Usage) -> None:
        retry = SwapRetry()
        while stored := self._read(namespace):
            quota = stored[0]
            if reservation not in quota.reserved:
                return
            left = {key: it for key, it in quota.reserved.items() if key != reservation}
            with retry:
                self._write(replace(quota, used=quota.used + used, reserved=left), stored[1])
                return

    def _recount(self, namespace: str) -> Quota | None:
        """Count the use of a namespace anew; a push that ends meanwhile may be counted twice until the next time, and never missed."""
        retry = SwapRetry()
        while stored := self._read(namespace):
            quota = replace(stored[0].current(stamps.now()), used=self._count(namespace))
            with retry:
                self._write(quota, stored[1])
                return quota
        return None

    def _count(self, namespace: str) -> Usage:
        total = Usage()
        for name in self._store.children(f"{REFS}{namespace}/"):
            document = self._registry.stored(f"{namespace}/{name.removesuffix('.json')}")
            if document:
                total += usage_of(document)
        return total

    def _read(self, namespace: str) -> tuple[Quota, str] | None:
        stored = QUOTAS.read(self._store, _key(namespace))
        return (Quota.from_dict(stored[0]), stored[1]) if stored else None

    def _write(self, quota: Quota, etag: str | None) -> None:
        QUOTAS.write(self._store, _key(quota.namespace), quota.to_dict(), etag)


def _key(namespace: str) -> str:
    return f"{QUOTAS.prefix}{namespace}.json"


def _no_room(quota: Quota, more: Usage) -> Refusal:
    taken, name = quota.taken, quota.namespace
    if quota.most_bytes is not None and taken.bytes + more.bytes > quota.most_bytes and more.bytes:
        fits = more.bytes <= quota.most_bytes
        message = (
            f"{name} may hold {quota.most_bytes:,} bytes, {taken.bytes:,} are taken, and this version has {more.bytes:,}. Remove versions "
            "(deltahub rm, deltahub retention), or ask the administrator for a larger quota."
        )
        return Refusal(507 if fits else 413, message)
    message = f"{name} may hold {quota.most_deltas:,} deltas, and has them. Remove one, or ask the administrator for a larger quota."
    return Refusal(507, message)
