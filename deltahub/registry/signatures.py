"""Signatures in a registry: `signatures/<64 of the digest>/<64 of the key>.json`, one for each delta and key.

They are no part of a version: a delta can be signed at any time, by several keys. They belong to a digest, so that every name and
version with that content is signed, and content that is pushed again still is. Nothing here decides whether one is good.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from deltahub.errors import ConflictError, NotFoundError
from deltahub.registry.registry import Registry
from deltahub.signing import MOST

PREFIX: Final = "signatures/"
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_ATTEMPTS: Final = 10


def signatures(registry: Registry, digest: str) -> dict[str, bytes]:
    """The signatures of a delta, by the id of the key that they are said to be by; what is too large to be one is passed over.

    Args:
        digest: of its manifest.

    Raises:
        StorageError: the registry cannot be read.
    """
    folder = f"{PREFIX}{digest.removeprefix('sha256:')}/"
    found = {}
    for name in sorted(registry.store.children(folder)):
        key_id = name.removesuffix(".json")
        if _KEY.fullmatch(key_id) and name.endswith(".json"):
            try:
                if registry.store.size(f"{folder}{name}") <= MOST:
                    found[key_id] = registry.store.read(f"{folder}{name}")
            except NotFoundError:  # replaced at this moment
                continue
    return found


def add_signature(registry: Registry, digest: str, key_id: str, data: bytes) -> None:
    """Store a signature, in place of one by the same key.

    Raises:
        StorageError: the registry is not writable.
    """
    key = f"{PREFIX}{digest.removeprefix('sha256:')}/{key_id}.json"
    for attempt in range(_ATTEMPTS):
        there = registry.store.read_tagged(key)
        if there and there[0] == data:
            registry.store.settle([key])
            return
        try:
            registry.store.swap(key, data, there[1] if there else None)
        except ConflictError:  # somebody signs it with the same key at this moment
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        return


def copy_signatures(source: Registry, target: Registry, digests: Collection[str]) -> None:
    """Copy the signatures of deltas that the target does not have; one that is there already stays as it is.

    Raises:
        StorageError: one registry cannot be read, or the other not written.
    """
    for digest in dict.fromkeys(digests):
        if theirs := signatures(source, digest):
            mine = signatures(target, digest)
            for key_id in theirs.keys() - mine.keys():
                add_signature(target, digest, key_id, theirs[key_id])
