"""The head of a repo's main branch, on which a push builds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from deltahub.checkpoint.checkpoint import CARD
from deltahub.checkpoint.from_files import MANIFEST, OWN_CARD
from deltahub.checkpoint.manifest import Manifest
from deltahub.sources.huggingface.calls import Calls
from deltahub.sources.huggingface.download import read
from deltahub.sources.huggingface.history import BRANCH
from deltahub.sources.huggingface.snapshot import manifest_in


@dataclass(frozen=True)
class Head:
    """The head of a repo's main branch.

    Attributes:
        commit: 40 hex digits.
        manifest: of the delta there; None if none was pushed.
        page: the README; None if it does not exist.
        card: the card of that delta as saved; None if it has none.
    """

    commit: str
    manifest: Manifest | None
    page: bytes | None
    card: bytes | None


def read_head(calls: Calls, repo: str, doing: str) -> Head:
    """Read the head of a repo: two requests, and a third if the page was edited.

    Raises:
        NotFoundError: the repo does not exist, or is hidden from this token.
        UnreachableError: the hub did not answer.
        StorageError: the hub refused.
    """
    answer = read(calls, repo, BRANCH, MANIFEST, doing)
    manifest = manifest_in(answer.data)
    page = read(calls, repo, answer.commit, CARD, doing).data
    entry = next((it for it in manifest.files if it.path == CARD), None) if manifest else None
    card = page if entry else None
    if entry and (page is None or hashlib.sha256(page).hexdigest() != entry.sha256):
        card = read(calls, repo, answer.commit, OWN_CARD, doing).data
    return Head(answer.commit, manifest, page, card)
