"""Folder stamps: the proof that nothing in a folder changed since it was listed.

An unchanged stamp proves that only if the stamp is not recent: a change within the same tick of the disk's clock leaves the stamp
as it is. So a listing counts only from two seconds after the stamp was first seen; no clock needs to be right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from deltahub.stores.base import Store

TICK: Final = 2.0  # seconds; no disk's clock is coarser


@dataclass(frozen=True)
class FolderStamp:
    """The stamp of a folder at its last listing.

    Attributes:
        stamp: the stamp; empty if the store has no stamps.
        seen: when this stamp was first seen, in seconds.
        settled: when the listing was made, if nothing can have changed since under this stamp; otherwise None.
    """

    stamp: str = ""
    seen: float = 0.0
    settled: float | None = None

    def proves(self, stamp: str | None, now: float, ttl: float = math.inf) -> bool:
        """Return whether nothing changed since the last listing.

        Args:
            stamp: the current stamp; None if the store has no stamps.
            ttl: seconds for which a listing counts.
        """
        return self._is_same(stamp, now) and self.settled is not None and self.settled <= now < self.settled + ttl

    def listed(self, stamp: str | None, now: float) -> FolderStamp:
        """Return the state after a listing.

        Args:
            stamp: the stamp read before the listing.
            now: the time before the listing.
        """
        is_unchanged = self._is_same(stamp, now)
        first_seen = self.seen if is_unchanged or stamp is None else now
        return FolderStamp(stamp or "", first_seen, now if is_unchanged and now - first_seen >= TICK else None)

    def _is_same(self, stamp: str | None, now: float) -> bool:
        return stamp is not None and stamp == self.stamp and self.seen <= now


def folder_stamps(store: Store, prefix: str) -> dict[str, str | None]:
    """Return the folders directly below a prefix with their stamps; the prefix itself with None if the store has no stamps."""
    if store.folder_stamp(prefix) is None:
        return {prefix: None}
    folders = [f"{prefix}{name}" for name in store.children(prefix) if name.endswith("/")]
    return {folder: store.folder_stamp(folder) for folder in folders}
