"""The protocol by which pushes and garbage collections agree, over any store, on which objects stay.

A registry keeps one more document, `gc/state.json`: the unreferenced objects, each with the time since when (*condemned*), those
that a collection is about to delete (*sweeping*), and a generation that every change increments.

- A collection announces the objects that it sweeps, and only then checks once more which objects are referenced.
- A push takes its objects off the list, stores them, and swaps its reference document; if the generation has changed by then,
  a collection came between, and the push stores its objects again before it reports success.

So the second always sees the first: no acknowledged push is lost, however long it takes, and no clock needs to be right. Only a
collection that is silent for five minutes is taken for dead: no single deletion may take so long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, KeysView, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from deltahub.errors import ConflictError, IntegrityError
from deltahub.files.documents import parse_stored, with_checksum
from deltahub.stores.base import Progress, Source, Store

STATE: Final = "gc/state.json"
SCHEMA: Final = "collection.v1"
SILENT: Final = 300.0  # seconds without a change after which a collection is taken for dead
RENEWED: Final = 20.0  # seconds within which a running collection changes the document
PAUSE: Final = 0.2  # seconds between two reads


@dataclass(frozen=True)
class State:
    """The state of garbage collection: the unreferenced objects of a registry.

    Attributes:
        generation: incremented by every change.
        condemned: sha256 of an object to when it was first found unused, ISO 8601 in UTC.
        sweeping: the same for objects being deleted.
        sweeper: the id of the collection that deletes them.
    """

    generation: int = 0
    condemned: Mapping[str, str] = field(default_factory=dict)
    sweeping: Mapping[str, str] = field(default_factory=dict)
    sweeper: str = ""


def read_state(store: Store) -> tuple[State, str | None]:
    """Return the state and its etag; an empty one and None if nothing was ever collected.

    Raises:
        IntegrityError: it is damaged.
    """
    stored = store.read_tagged(STATE)
    if stored is None:
        return State(), None
    document, wrong = parse_stored(stored[0], SCHEMA)
    if wrong:
        remedy = "Delete it: only the record of how long objects have been unused is lost."
        raise IntegrityError(f"{STATE} in {store.url}", "the state of a collection", wrong, remedy)
    fields = {name: value for name, value in document.items() if name not in ("schema_version", "checksum")}
    return State(**fields), stored[1]


def write_state(store: Store, state: State, etag: str | None) -> str:
    """Swap in `state`, whose generation is the next one.

    Raises:
        ConflictError: it changed meanwhile.
    """
    document = {
        "schema_version": 1,
        "generation": state.generation,
        "condemned": dict(state.condemned),
        "sweeping": dict(state.sweeping),
        "sweeper": state.sweeper,
    }
    return store.swap(STATE, with_checksum(document), etag)


def spare(store: Store, objects: Collection[str]) -> int:
    """Take objects off the list of deletions; wait for a collection that is deleting any.

    Args:
        objects: their sha256.

    Returns:
        The generation in which no object is listed. Objects that were being deleted may be gone.
    """
    while True:
        state, etag = settled(store, lambda sweeping: not sweeping.isdisjoint(objects))
        if state.condemned.keys().isdisjoint(objects) and state.sweeping.keys().isdisjoint(objects):
            return state.generation
        try:
            write_state(store, _without(state, objects), etag)
        except ConflictError:
            continue
        return state.generation + 1


def store_spared(store: Store, objects: Mapping[str, Source], progress: Progress | None = None) -> int:
    """Store objects in a generation that does not delete any.

    Args:
        objects: see `Store.create`.

    Returns:
        That generation.
    """
    generation = spare(store, objects)
    while True:
        store.create(objects, progress)
        if (now := spare(store, objects)) == generation:
            return generation
        generation, progress = now, None


def settled(store: Store, busy: Callable[[KeysView[str]], bool]) -> tuple[State, str | None]:
    """Return the state and its etag, once no live collection is busy.

    Args:
        busy: whether the objects being swept concern the caller.
    """
    state, etag = read_state(store)
    since = time.monotonic()
    if state.sweeping and busy(state.sweeping.keys()):
        from deltahub.log import LOGGER  # late: hardly ever needed

        text = "Waiting for a collection in %s; if it was killed, for %.0f seconds at most."
        LOGGER.warning(text, store.url, SILENT)
    while state.sweeping and busy(state.sweeping.keys()) and time.monotonic() < since + SILENT:
        time.sleep(PAUSE)
        now, etag = read_state(store)
        if now.generation != state.generation:
            since = time.monotonic()
        state = now
    return state, etag


def _without(state: State, objects: Collection[str]) -> State:
    condemned = {sha256: since for sha256, since in state.condemned.items() if sha256 not in objects}
    sweeping = {sha256: since for sha256, since in state.sweeping.items() if sha256 not in objects}
    return replace(state, generation=state.generation + 1, condemned=condemned, sweeping=sweeping)
