"""Deltas on a DeltaHub hub that fit a backbone: each backbone record is fetched once for all deltas that share it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from deltahub.checkpoint.backbone_fit import FITS, Tensors, fit
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.checkpoint import BACKBONE
from deltahub.errors import DeltaHubError, UnreachableError
from deltahub.registry.commit_message import commit_id
from deltahub.registry.entries import RECORD
from deltahub.registry.search.index import Listed
from deltahub.sources.huggingface.calls import Calls
from deltahub.sources.huggingface.download import read
from deltahub.stores.threads import map_concurrently

_AT_ONCE: Final = 4


def fitting(calls: Calls, entries: Sequence[Listed], backbone: Tensors, *, near: bool) -> list[Listed]:
    """Return the lines of those that fit a backbone, each with how it does.

    Args:
        near: whether those that do not fit are wanted too.

    Raises:
        UnreachableError: there was no answer.
    """
    with_record = {entry.summary.get(RECORD): entry for entry in entries}
    decided = map_concurrently(lambda entry: fit(_record(calls, entry), backbone), with_record.values(), _AT_ONCE)
    fits = dict(zip(with_record, decided, strict=True))
    lines = [replace(entry, fit=fits[entry.summary.get(RECORD)]) for entry in entries]
    return [entry for entry in lines if near or (entry.fit and entry.fit.level in FITS)]


def _record(calls: Calls, line: Listed) -> Fingerprint:
    """Return a delta's record of its backbone; an empty one if it has none, or a damaged one, as of a registry."""
    sha256 = line.summary.get(RECORD)
    if not isinstance(sha256, str) or not line.digest:
        return Fingerprint(())
    try:
        data = read(calls, line.name, commit_id(line.digest), BACKBONE, f"Looking up {line.name}").data
        is_intact = data is not None and hashlib.sha256(data).hexdigest() == sha256
        return Fingerprint.from_bytes(data) if data and is_intact else Fingerprint(())
    except UnreachableError:
        raise
    except DeltaHubError:
        return Fingerprint(())
