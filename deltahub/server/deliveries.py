"""Deliveries of events to webhooks: at least once, in the order of each delta, with back-off.

The outbox is the log of each delta, which no process can lose. A document for each webhook, ``hub/deliveries/OWNER/ID.json``, says how
far each log was sent, what failed, and which process sends now: several processes share the work by compare-and-swap.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from deltahub.errors import CheckpointError, ConflictError, DeltaHubError, IntegrityError, NotFoundError, StorageError
from deltahub.registry import stamps
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.events import Event, events_of, identity
from deltahub.registry.hub_records import DELIVERIES
from deltahub.registry.registry import REFS, Registry
from deltahub.server.access import Caller
from deltahub.server.documents import Documents
from deltahub.server.records import Records
from deltahub.server.tokens import Tokens
from deltahub.server.webhooks import Webhook, Webhooks
from deltahub.sources.web.post import post
from deltahub.stores.base import Store
from deltahub.stores.threads import map_concurrently

ATTEMPTS: Final = 10  # of one event, within about a day
_FIRST, _LONGEST = 15.0, 6 * 3600.0  # seconds before the second attempt, and between two at most
_AT_ONCE: Final = 4
_LEASE: Final = 600.0  # seconds that one process may take for a batch
_BATCH: Final = 20  # events sent before the state is stored
_MOST_DEAD: Final = 100  # failed events that are kept

Post = Callable[..., None]


@dataclass(frozen=True)
class Deliveries:
    """The state of the deliveries to one webhook.

    Attributes:
        positions: how many entries of each delta's log are done, by `identity`.
        attempts: of the event that is due, so far.
        due: when it is tried again, in seconds since 1970.
        leased: until when a process sends, in seconds since 1970.
        delivered: how many events the receiver took.
        dead: the events that were given up, newest last, each with its error and the time.
    """

    positions: Mapping[str, int] = field(default_factory=dict)
    attempts: int = 0
    due: float = 0.0
    leased: float = 0.0
    delivered: int = 0
    dead: tuple[Mapping[str, Any], ...] = ()


def deliveries(store: Store) -> Documents[Deliveries]:
    """Return the states of all webhooks, by ``OWNER/ID``."""
    return Documents(store, DELIVERIES, lambda values: Deliveries(**{**values, "dead": tuple(values["dead"])}), _dump)


def _dump(state: Deliveries) -> dict[str, Any]:
    return {**asdict(state), "dead": list(state.dead)}


class Dispatcher:
    """Sends what happened to all webhooks.

    Args:
        registry: whose events are sent.
        private: whether webhooks may have private addresses.
        send: sends one body, as `post` does.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        private: bool = False,
        send: Post = post,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry, self._private, self._send, self._clock = registry, private, send, clock
        self._states, self._records = deliveries(registry.store), Records(registry.store)
        self._done: dict[tuple[str, str], str] = {}  # the stamp of each document whose events a webhook has

    def run(self) -> None:
        """Send what is due, to several webhooks at once, so that a slow one delays few others."""
        webhooks = [it for it in Webhooks(self._registry.store).all() if not it.disabled and "repo" in it.domains]
        for _ in map_concurrently(self._deliver_or_log, webhooks, _AT_ONCE):
            pass

    def _deliver_or_log(self, webhook: Webhook) -> None:
        try:
            self._deliver(webhook)
        except ConflictError:  # another process sends
            return
        except DeltaHubError as error:
            logging.getLogger("deltahub.server").warning("A webhook of %s waits: %s", webhook.owner, error)

    def _deliver(self, webhook: Webhook) -> None:
        name, now = f"{webhook.owner}/{webhook.id}", self._clock()
        state = self._states.find(name) or Deliveries()
        if state.due > now or state.leased > now:
            return
        pending = list(self._pending(webhook, state))
        if not pending:
            return

        def lease(current: Deliveries | None) -> Deliveries:
            if (current or Deliveries()) != state:
                raise ConflictError(f"The deliveries to {name}", "no other process", "one that sends")
            return replace(state, leased=now + _LEASE)

        leased = self._states.change(name, lease)
        sent = leased
        for key, event in pending[:_BATCH]:
            sent, goes_on = self._attempt(webhook, sent, key, event)
            if not goes_on:
                break
        final = replace(sent, leased=0.0)
        self._states.change(name, lambda current: final if current == leased else current or final)

    def _attempt(self, webhook: Webhook, state: Deliveries, key: str, event: Event) -> tuple[Deliveries, bool]:
        """Send one event; return the new state, and whether the next one may be sent."""
        passed = replace(state, positions={**state.positions, key: event.number + 1}, attempts=0, due=0.0)
        now = self._clock()
        body = json.dumps({"event": event.to_dict(), "webhook": {"id": webhook.id}}).encode()
        try:
            self._send(webhook.url, body, int(now), webhook.secret, private=self._private)
        except StorageError as error:
            attempts = state.attempts + 1
            if attempts < ATTEMPTS:
                wait = min(_FIRST * 2 ** (attempts - 1), _LONGEST)
                return replace(state, attempts=attempts, due=now + wait), False
            dead = {"event": event.to_dict(), "error": str(error), "time": stamps.now()}
            return replace(passed, dead=(*state.dead, dead)[-_MOST_DEAD:]), True
        return replace(passed, delivered=state.delivered + 1), True

    def _pending(self, webhook: Webhook, state: Deliveries) -> Iterator[tuple[str, Event]]:
        """Iterate over the events that the webhook does not have, delta by delta, each with the identity of its delta."""
        token = Tokens(self._registry.store).find(webhook.token)
        if token is None or token.fault(stamps.now()):
            return
        store, watched = self._registry.store, {item.name.partition("/")[0].lower() for item in webhook.watched}
        namespaces = [child for child in sorted(store.children(REFS)) if child.rstrip("/").lower() in watched]
        for key, stamp in (entry for namespace in namespaces for entry in store.keys(f"{REFS}{namespace}")):
            path = key[len(REFS) :].removesuffix(".json")
            if self._done.get((webhook.id, key)) == stamp or not webhook.covers(path):
                continue
            document = self._readable(token.caller, path)
            if document is None:
                continue
            events = [*events_of(document, _start(document, webhook, state))]
            if not events:
                self._done[webhook.id, key] = stamp
            yield from ((identity(document), event) for event in events)

    def _readable(self, caller: Caller, path: str) -> ReferenceDocument | None:
        """Return a delta that the token of a webhook may read; None for any other, and for a damaged one."""
        try:
            record = self._records.find(path)
            document = self._registry.stored(path)
        except (NotFoundError, IntegrityError, CheckpointError):
            return None
        private = record is not None and record.private
        may = document is not None and caller.may_read(document.name.namespace, private=private)
        return document if may else None


def _start(document: ReferenceDocument, webhook: Webhook, state: Deliveries) -> int:
    """Return the number of the first event to send: none from before the webhook was created."""
    if not document.log or document.moved_to:
        return 0
    position = state.positions.get(identity(document))
    if position is not None:
        return position
    numbers = (number for number, move in enumerate(document.log) if move.time >= webhook.created)
    return next(numbers, len(document.log))
