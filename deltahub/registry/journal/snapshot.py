"""The snapshot of a registry's catalogue: a head, replaced by compare-and-swap, and the immutable parts that it lists.

A part is a gzip file of JSON lines, one for each document: its path, its stamp, and what the catalogue keeps of it. The newest line
about a document counts. A new head folds the entries since the last one into a part, and merges parts so that their number stays
logarithmic; it deletes the entries that the head *before* it covered already, and the parts that neither needs.

So entries and parts stay for one whole generation after they were folded, and this is why no reader misses a change: a reader
that has seen generation g has processed all entries that head g covers, listed ones from the list, deleted ones by an earlier
generation or from the parts. If it finds head g + 1, only entries that head g covers are gone, which it has processed. If it finds a later one, it
reads the parts that it does not know. No clock is compared.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any, Final

from deltahub.errors import ConflictError, IntegrityError
from deltahub.files.documents import parse_stored, with_checksum
from deltahub.registry.journal.entries import JOURNAL
from deltahub.stores.base import Store
from deltahub.stores.threads import map_concurrently

HEAD: Final = f"{JOURNAL}head.json"
PARTS: Final = f"{JOURNAL}parts/"
_SCHEMA: Final = "journal.v1"
_LINES: Final = 50_000  # the most lines of a part
_LARGEST: Final = 1 << 30  # bytes of an unpacked part

Line = dict[str, Any]  # {"path": ..., "stamp": ..., "entry": ...}: see `deltahub.registry.search.contents`


@dataclass(frozen=True)
class Part:
    """A part of a snapshot.

    Attributes:
        key: its key.
        sha256: of its bytes.
        lines: their number.
    """

    key: str
    sha256: str
    lines: int


@dataclass(frozen=True)
class Head:
    """The head of a snapshot.

    Attributes:
        lineage: random; equal in all heads that followed each other.
        generation: the number of the head in its lineage, from 1.
        parts: oldest first.
        covered: the keys of the entries folded into the parts.
        listed: when a full listing of the documents last went into a head, in seconds since 1970.
    """

    lineage: str
    generation: int
    parts: tuple[Part, ...]
    covered: frozenset[str]
    listed: float

    def to_bytes(self) -> bytes:
        """Return the head as it is stored."""
        parts = [asdict(part) for part in self.parts]
        return with_checksum({"schema_version": 1, **vars(self), "parts": parts, "covered": sorted(self.covered)})


def read_head(store: Store) -> tuple[Head | None, str | None]:
    """Return the head and its etag; None for a missing or damaged head, which the next one replaces."""
    stored = store.read_tagged(HEAD)
    if stored is None:
        return None, None
    document, wrong = parse_stored(stored[0], _SCHEMA)
    if wrong:
        return None, stored[1]
    parts = tuple(Part(**part) for part in document["parts"])
    fields = {name: document[name] for name in ("lineage", "generation", "listed")}
    return Head(**fields, parts=parts, covered=frozenset(document["covered"])), stored[1]


def read_part(store: Store, part: Part) -> list[Line]:
    """Return the lines of a part.

    Raises:
        NotFoundError: a newer head does without it.
        IntegrityError: it is damaged.
    """
    data = store.read(part.key)
    wrong = IntegrityError(part.key, "the part of a snapshot", "other bytes", "Remove journal/: it is made anew.")
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise wrong
    with gzip.open(io.BytesIO(data)) as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise wrong
    return [json.loads(line) for line in text.splitlines()]


def newest_lines(store: Store, parts: Sequence[Part]) -> Iterator[Line]:
    """Iterate over the newest line about each document in some parts, given oldest first."""
    seen: set[str] = set()
    for part in reversed(parts):
        for line in read_part(store, part):
            if line["path"] not in seen:
                seen.add(line["path"])
                yield line


def publish_head(
    store: Store,
    base: Head | None,
    etag: str | None,
    lines: Iterable[Line],
    covered: Collection[str],
    listed: float,
    present: Collection[str],
    *,
    whole: bool = False,
) -> bool:
    """Replace the head by one that has more lines, then delete what the old one no longer needs.

    Args:
        base: the present head; None if there is none that can be read.
        etag: the etag of the present head; None if there is none.
        lines: what is new.
        covered: the keys of the entries that are in `lines`, and not covered by `base`.
        listed: as in `Head`.
        present: the keys below `JOURNAL` that were listed before the head was read.
        whole: whether `lines` are about all documents, so that older parts are left out; True without a base.

    Returns:
        False if another process was faster.

    Raises:
        StorageError: the store is not writable or out of reach.
    """
    kept: tuple[Part, ...] = ()
    if base and not whole:
        kept, lines = _merged(store, base.parts, list(lines))
    remaining = iter(lines)
    batches = (chain([first], islice(remaining, _LINES - 1)) for first in remaining)
    parts = (*kept, *(_write_part(store, batch) for batch in batches))
    lineage, generation = (base.lineage, base.generation + 1) if base else (uuid.uuid4().hex, 1)
    head = Head(lineage, generation, parts, frozenset(covered), listed)
    try:
        store.swap(HEAD, head.to_bytes(), etag)
    except ConflictError:
        _delete(store, [part.key for part in parts[len(kept) :]])
        return False
    needed = {part.key for part in (*parts, *(base.parts if base else ()))}
    unused = [key for key in present if key.startswith(PARTS) and key not in needed]
    _delete(store, [*unused, *((base.covered & set(present)) if base else ())])
    return True


def _merged(store: Store, parts: Sequence[Part], lines: list[Line]) -> tuple[tuple[Part, ...], list[Line]]:
    """Return the parts to keep, and the new lines with those of the last parts that are not much longer."""
    kept, count = list(parts), len(lines)
    while lines and kept and kept[-1].lines <= 2 * count and kept[-1].lines + count <= _LINES:
        count += kept.pop().lines
    newest = {line["path"]: line for line in lines}
    older = newest_lines(store, parts[len(kept) :])
    return tuple(kept), [*newest.values(), *(line for line in older if line["path"] not in newest)]


def _write_part(store: Store, lines: Iterable[Line]) -> Part:
    buffer, count = io.BytesIO(), 0
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=3, mtime=0) as file:
        for line in lines:
            count += 1
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    data = buffer.getvalue()
    part = Part(f"{PARTS}{uuid.uuid4().hex}", hashlib.sha256(data).hexdigest(), count)
    store.swap(part.key, data, None)
    return part


def _delete(store: Store, keys: Collection[str]) -> None:
    for _ in map_concurrently(store.delete, keys, store.at_once):
        pass
