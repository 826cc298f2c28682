"""One commit of a repo: the manifest stored by DeltaHub and the files, with every byte verified.

    manifest.json      the manifest; its sha256 is the delta's identity
    README.md          the repo's page: the delta's card, possibly edited on the hub
    delta_card.md      the delta's card as saved, byte for byte
    ...                the other files of the checkpoint under their own names

A hub may serve the files of a small delta in one response: it is split by the manifest, and each file is verified as usual.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

from deltahub.checkpoint.checkpoint import CARD
from deltahub.checkpoint.from_files import MANIFEST, OWN_CARD
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import IntegrityError, NotFoundError, StorageError
from deltahub.files.atomic import copy_hashed
from deltahub.files.documents import parse
from deltahub.reference import Digest
from deltahub.sources.huggingface.calls import Calls
from deltahub.sources.huggingface.download import copy, read, read_pack
from deltahub.sources.huggingface.history import BRANCH
from deltahub.stores.base import Progress

_OURS: Final = frozenset({"schema_version", "kind", "files", "tensors"})  # keys of a manifest.json made by DeltaHub


class Snapshot:
    """One commit of a repo.

    Args:
        calls: to its hub.
        repo: ``"namespace/name"``.
        commit: 40 hex digits.
        partials: the folder for partial files of interrupted downloads; None to discard them.
    """

    def __init__(self, calls: Calls, repo: str, commit: str, partials: Path | None = None) -> None:
        self.calls, self.repo, self.commit, self.partials = calls, repo, commit, partials

    def __str__(self) -> str:
        return f"{self.calls.name}:{self.repo}@{self.commit}"

    def fetch(self, entry: FileEntry, into: Path, progress: Progress | None = None) -> None:
        """Copy and verify a file; from huggingface_hub's own cache if it is complete there.

        Raises:
            IntegrityError: the commit has different bytes under this name; nothing is left at `into`.
            UnreachableError: the hub did not answer.
            StorageError: the hub refused.
        """
        actual = "no such file"
        card = entry.path == CARD
        for path in (CARD, OWN_CARD) if card else (entry.path,):
            try:
                for sha256 in self._copies(path, entry, into, None if card else progress):
                    if sha256 == entry.sha256:
                        if card and progress:  # not earlier: the page may differ from the card
                            progress(entry.size)
                        return
                    into.unlink()
                    actual = Digest.of_hex(sha256)
            except NotFoundError:
                into.unlink(missing_ok=True)
            except BaseException:
                into.unlink(missing_ok=True)
                raise
        remedy = "Pull it again; if it stays so, the repo does not hold what was pushed: pull an older version, or push it again."
        subject = f"{entry.path} of {self} in {self.calls.place}"
        raise IntegrityError(subject, Digest.of_hex(entry.sha256), actual, remedy)

    def _copies(self, path: str, entry: FileEntry, into: Path, progress: Progress | None) -> Iterator[str]:
        """Copy the file from one place after another, on demand, and yield the sha256 of each copy."""
        if cached_path := cached_by_huggingface(self.repo, self.commit, path):
            with contextlib.suppress(OSError):  # missing or unreadable: the hub has it too
                sha256, _ = copy_hashed(cached_path, into)
                if sha256 == entry.sha256 and progress:
                    progress(entry.size)
                yield sha256
        into.unlink(missing_ok=True)
        at = (self.calls, self.repo, self.commit, path)
        yield copy(*at, into, entry.size, progress, self.partials, entry.sha256)


def cached_by_huggingface(repo: str, commit: str, path: str) -> Path | None:
    """Return the path of a file in huggingface_hub's own cache; nothing is written there."""
    from huggingface_hub import try_to_load_from_cache

    folder = os.environ.get("HF_HUB_CACHE")
    if not folder and (home := os.environ.get("HF_HOME")):
        folder = str(Path(home) / "hub")
    cached_path = try_to_load_from_cache(repo, path, cache_dir=folder or None, revision=commit)
    return Path(cached_path) if isinstance(cached_path, str) else None


def manifest_in(data: bytes | None) -> Manifest | None:
    """Parse a `manifest.json`; return None if it is missing, or another program's.

    Raises:
        CheckpointError: it is malformed, or written by a later DeltaHub.
    """
    if data is None:
        return None
    try:
        document = parse(data)
    except ValueError:
        return None
    if not isinstance(document, dict) or not document.keys() >= _OURS:
        return None
    return Manifest.from_bytes(data, Digest.of(data))


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
    entry = next((file for file in manifest.files if file.path == CARD), None) if manifest else None
    card = page if entry else None
    if entry and (page is None or hashlib.sha256(page).hexdigest() != entry.sha256):
        card = read(calls, repo, answer.commit, OWN_CARD, doing).data
    return Head(answer.commit, manifest, page, card)


class PackedSnapshot:
    """The files of a commit, downloaded together on first use.

    Args:
        snapshot: the commit; a file that fails verification is downloaded from it separately.
        manifest: of the delta.
        path: where the hub serves the files.
    """

    def __init__(self, snapshot: Snapshot, manifest: Manifest, path: str) -> None:
        self._snapshot, self._manifest, self._path = snapshot, manifest, path
        self._files: dict[str, bytes] | None = None
        self._fetching = threading.Lock()

    def fetch(self, entry: FileEntry, into: Path, progress: Progress | None = None) -> None:
        """See `Snapshot.fetch`."""
        with self._fetching:
            if self._files is None:
                self._files = self._parted()
        data = self._files.get(entry.path)
        if data is None or hashlib.sha256(data).hexdigest() != entry.sha256:
            self._snapshot.fetch(entry, into, progress)
            return
        with into.open("xb") as file:
            file.write(data)
        if progress:
            progress(entry.size)

    def _parted(self) -> dict[str, bytes]:
        entries = self._manifest.files
        try:
            data = read_pack(self._snapshot.calls, self._snapshot.repo, self._path, self._manifest.size)
        except (NotFoundError, StorageError):
            return {}
        ends = list(accumulate(entry.size for entry in entries))
        return {entry.path: data[end - entry.size : end] for entry, end in zip(entries, ends, strict=True)}
