"""Signatures in a registry: `signatures/<64 of the digest>/<64 of the key>.json`, one file per delta and key.

They are not part of a version: a delta can be signed at any time, by several keys. A file holds the signatures of a key, one per
line: each states the name and version that it covers, and content with several has a signature for each. This module
does not verify signatures.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Final, Protocol

from deltahub.errors import ConflictError, DeltaHubError, NotFoundError, Outcome, StorageError, outcome
from deltahub.reference import Digest
from deltahub.signing import MOST, split_signatures, stated_version
from deltahub.stores.base import Store, Swap
from deltahub.stores.retry import SwapRetry
from deltahub.stores.threads import map_concurrently


class Stored(Protocol):
    """A registry, as far as its store: whatever checks signatures is below it."""

    @property
    def store(self) -> Store:
        """The store with the bytes."""
        ...


PREFIX: Final = "signatures/"
_KEY_ID: Final = re.compile(r"[0-9a-f]{64}")


def signatures(registry: Stored, digest: Digest) -> dict[str, bytes]:
    """Return the signatures of a delta, by the id of the key that claims them; oversized files are skipped.

    Args:
        digest: the digest of its manifest.

    Raises:
        StorageError: the registry cannot be read.
    """
    folder = _folder(digest)
    by_key = {}
    for name in sorted(registry.store.children(folder)):
        key_id = name.removesuffix(".json")
        if _KEY_ID.fullmatch(key_id) and name.endswith(".json"):
            try:
                if registry.store.size(f"{folder}{name}") <= MOST:
                    by_key[key_id] = registry.store.read(f"{folder}{name}")
            except NotFoundError:  # replaced just now
                continue
    return by_key


def add_signature(registry: Stored, digest: Digest, key_id: str, data: bytes) -> None:
    """Store a signature beside those by the same key, replacing one that states the same version.

    Raises:
        StorageError: the registry is not writable, or the key has signed too many versions with this content.
    """
    key = _key(digest, key_id)
    retry = SwapRetry()
    while True:
        there = registry.store.read_tagged(key)
        merged = _together(there[0] if there else b"", data)
        if there and there[0] == merged:
            registry.store.settle([key])
            return
        with retry:  # against concurrent signatures by the same key
            registry.store.swap(key, merged, there[1] if there else None)
            return


def _together(there: bytes, new: bytes) -> bytes:
    """Merge signatures of a key; a new one replaces one that states the same."""
    lines = {stated_version(line): line for line in split_signatures(there) if stated_version(line) is not None}
    for line in split_signatures(new):
        lines[stated_version(line)] = line
    together = b"\n".join(line for said, line in lines.items() if said is not None or len(lines) == 1)
    if len(together) > MOST:
        msg = "One key has signed too many versions with the same content. Sign this one with another key."
        raise StorageError(msg)
    return together


def add_signatures(registry: Stored, key_id: str, data: Mapping[Digest, bytes]) -> dict[Digest, DeltaHubError]:
    """Store one key's signatures of many deltas like `add_signature`, with a single sync.

    Args:
        data: digest of a delta's manifest to its signatures, one per line.

    Returns:
        By digest the error that kept a signature from being stored; the others are durable.

    Raises:
        StorageError: the registry failed as a whole.
    """
    keys = {digest: _key(digest, key_id) for digest in data}
    there = map_concurrently(registry.store.read_tagged, keys.values(), registry.store.at_once)
    swaps = [
        Swap(keys[digest], _together(current[0] if current else b"", data[digest]), current[1] if current else None)
        for digest, current in zip(data, there, strict=True)
    ]
    failed: dict[Digest, DeltaHubError] = {}
    for digest, swapped in zip(data, registry.store.swap_all(swaps), strict=True):
        stored: Outcome[object] = swapped
        if isinstance(swapped, ConflictError):  # a concurrent signature by the same key
            stored = outcome(partial(add_signature, registry, digest, key_id, data[digest]))
        if isinstance(stored, DeltaHubError):
            failed[digest] = stored
    return failed


def copy_signatures(source: Stored, target: Stored, digests: Collection[Digest]) -> None:
    """Copy the signatures that the target lacks; an existing one of the same key and version stays.

    Raises:
        StorageError: the source cannot be read, or the target cannot be written.
    """
    for digest in dict.fromkeys(digests):
        if source_signatures := signatures(source, digest):
            merge_signatures(target, digest, source_signatures)


def merge_signatures(registry: Stored, digest: Digest, added: Mapping[str, bytes]) -> None:
    """Store the signatures of a delta, by key, that a registry lacks.

    Raises:
        StorageError: the registry cannot be read or written.
    """
    mine = signatures(registry, digest) if added else {}
    for key_id, data in added.items():
        versions = {stated_version(line) for line in split_signatures(mine[key_id])} if key_id in mine else set()
        new = [line for line in split_signatures(data) if not versions or stated_version(line) not in {*versions, None}]
        if new:
            add_signature(registry, digest, key_id, b"\n".join(new))


def _folder(digest: Digest) -> str:
    return f"{PREFIX}{digest.hex}/"


def _key(digest: Digest, key_id: str) -> str:
    return f"{_folder(digest)}{key_id}.json"
