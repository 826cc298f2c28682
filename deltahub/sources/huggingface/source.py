"""A hub of the Hugging Face protocol as a source: the Hugging Face Hub or a self-hosted one.

A delta is a repo, a version is a commit, and an exact reference names the commit. `latest` is the head of the main branch; a
version may also be a branch, a git tag, or the digest of the pushed content.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deltahub.checkpoint.from_files import MANIFEST
from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import CheckpointError, NotFoundError, NoVersionError
from deltahub.link import Link
from deltahub.reference import LATEST, DeltaPath, Digest, Reference, as_delta_path, is_digest
from deltahub.registry.amend import Amendment
from deltahub.registry.commit_message import commit_id
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.editor import Editor
from deltahub.registry.entries import Version
from deltahub.registry.promotion.policy import Policy
from deltahub.registry.publish import Publication
from deltahub.registry.search.conditions import Search
from deltahub.registry.search.index import Listed
from deltahub.sources.base import Pushed, Resolved, pause
from deltahub.sources.huggingface.amend import amend
from deltahub.sources.huggingface.calls import Calls, Token
from deltahub.sources.huggingface.download import read, read_manifest
from deltahub.sources.huggingface.editor import HubEditor
from deltahub.sources.huggingface.git_editor import GitEditor
from deltahub.sources.huggingface.history import BRANCH, document, history, names
from deltahub.sources.huggingface.policy import read_policy, write_policy
from deltahub.sources.huggingface.push import Push
from deltahub.sources.huggingface.search import search_hub, tags_of
from deltahub.sources.huggingface.snapshot import PackedSnapshot, Snapshot, manifest_in
from deltahub.sources.huggingface.unmanifested import UnmanifestedDelta
from deltahub.stores.base import Progress
from deltahub.stores.retry import HUB_ANSWER_TIMEOUT
from deltahub.text.suggestions import closest, mistyped

if TYPE_CHECKING:
    from deltahub.sources.base import CacheLookup

HF: Final = "hf"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class HuggingFace:
    """Deltas in the repos of a hub.

    Args:
        name: of the source.
        endpoint: URL of the hub; None for HF_ENDPOINT, or else the Hugging Face Hub.
        token: the user's token there; False for none.
        token_variable: the environment variable that holds it otherwise; None for the one of `hf auth login` or HF_TOKEN, which
            belongs to the hub that HF_ENDPOINT names.
        lookup: what was pulled before, so that a pinned commit needs no request.
        pause: waits for a number of seconds, when the hub asks for it.
        kept: the folder in which what interrupted downloads got is kept; None to keep nothing.
        longest: seconds for one answer as a whole, without the bytes of files.
    """

    def __init__(
        self,
        name: str = HF,
        endpoint: str | None = None,
        token: Token = None,
        token_variable: str | None = None,
        lookup: CacheLookup | None = None,
        pause: Callable[[float], None] = pause,
        kept: Path | None = None,
        longest: float = HUB_ANSWER_TIMEOUT,
    ) -> None:
        self.calls = Calls(name, endpoint, token, token_variable, pause, longest)
        self._kept = kept
        self._lookup = lookup

    @property
    def name(self) -> str:
        """The name of the source."""
        return self.calls.name

    @property
    def place(self) -> str:
        """The source's name and the hub's URL, for people."""
        return self.calls.place

    @property
    def remote(self) -> bool:
        """Always True."""
        return True

    def resolve(self, reference: Reference | Link, progress: Progress | None = None) -> Resolved:
        """See `Source.resolve`: one request, or none for a commit pulled before.

        A repo without a manifest is listed, and its delta downloaded at once to build one.
        """
        path, version = reference.path, reference.version
        if version and _COMMIT.fullmatch(version) and (resolved := self._cached(path, version)):
            return resolved
        revision = self._revision(path, version)
        try:
            answer = read(self.calls, path, revision, MANIFEST, f"Looking up {path}")
        except NoVersionError as error:
            raise self._unknown(path, revision, error) from error
        if resolved := self._cached(path, answer.commit):
            return resolved
        snapshot = Snapshot(self.calls, path, answer.commit, self._kept)
        manifest = manifest_in(answer.data)
        if manifest is None:
            return self._without_manifest(snapshot, answer.manifest)
        return self._resolved(
            snapshot, manifest, PackedSnapshot(snapshot, manifest, answer.pack) if answer.pack else None
        )

    def _without_manifest(self, snapshot: Snapshot, address: str | None) -> Resolved:
        """Resolve a commit without a manifest: to the delta it contains, or on a DeltaHub hub else to all of its files."""
        try:
            foreign = UnmanifestedDelta(snapshot)
        except CheckpointError:
            if address is None:
                raise
            return self._resolved(snapshot, read_manifest(self.calls, snapshot.repo, snapshot.commit, address))
        return self._resolved(snapshot, foreign.manifest, foreign)

    def version(self, path: DeltaPath, digest: Digest) -> Resolved:
        """Return a version of a DeltaHub hub with all of its files, by its digest.

        Args:
            path: ``"namespace/name"``.

        Raises:
            NotFoundError: it no longer exists.
            IntegrityError: the hub answers with a different one.
            UnreachableError: the hub did not answer.
        """
        snapshot = Snapshot(self.calls, path, commit_id(digest))
        address = f"/api/deltahub/{path}/manifest/{snapshot.commit}"
        return self._resolved(snapshot, read_manifest(self.calls, path, snapshot.commit, address))

    def document(self, path: DeltaPath) -> ReferenceDocument:
        """See `Source.document`, and `history` for what counts as a version. Only the newest version has tags."""
        doing = f"Looking up {path}"
        past = history(self.calls, path, doing)
        if hub_document := past.names.document:
            if not (hub_document.versions or hub_document.removed):
                raise NotFoundError(
                    f"{self.name}:{path}", (f"{self.place}: a new repo to which nothing was pushed yet",)
                )
            return hub_document
        info = self.calls.make(lambda: self.calls.api.model_info(path), doing, f"{self.name}:{path}")
        return document(path, past, tags_of(info))

    def neighbours(self, path: DeltaPath) -> tuple[DeltaPath, ...]:
        """See `Source.neighbours`."""
        entries = search_hub(self.calls, Search())[0]
        paths = [listed for entry in entries if (listed := as_delta_path(entry.name))]
        near = {namespace.lower() for namespace in mistyped(path.namespace, {listed.namespace for listed in paths})}
        inside = [listed for listed in paths if listed.namespace.lower() in near]
        return closest(path, inside, limit=max(len(inside), 1), cutoff=0)

    def search(self, search: Search) -> tuple[list[Listed], int]:
        """See `Source.search`; the hub itself searches, so there is no progress to report."""
        return search_hub(self.calls, search)

    def publish(self, publication: Publication, progress: Progress | None = None) -> Pushed:
        """See `Source.publish`; a missing repo is created."""
        published = Push(self.calls, publication).run()
        reference, manifest = publication.reference, publication.manifest
        if progress:
            progress(manifest.size)
        exact = Reference(reference.path, source=self.name, version=published.commit)
        return Pushed(exact, manifest.digest, published.new, manifest.size, published.tags)

    def amend(self, path: DeltaPath, version: str | None, amendment: Amendment) -> tuple[str, Version]:
        """See `Source.amend`; only a hub of DeltaHub keeps such changes."""
        return amend(self.calls, path, names(self.calls, path, f"Looking up {path}"), version, amendment)

    def uncached(self) -> HuggingFace:
        """Return this source with an empty memory of earlier pulls, so that the hub answers everything itself."""
        source = copy.copy(self)
        source._lookup, source._kept = None, None
        return source

    def editor(self, path: DeltaPath) -> Editor:
        """See `Editable.editor`; a repo of another hub than DeltaHub's can be changed as far as git goes."""
        refs = names(self.calls, path, f"Looking up {path}")
        return GitEditor(self.calls, refs) if refs.document is None else HubEditor(self.calls)

    def policy(self) -> tuple[Policy, str]:
        """See `Governed.policy`."""
        return read_policy(self.calls)

    def set_policy(self, policy: Policy, etag: str, reason: str = "") -> Policy:
        """See `Governed.set_policy`."""
        return write_policy(self.calls, policy, etag, reason)

    def _cached(self, path: str, commit: str) -> Resolved | None:
        """Return a commit pulled before, if it is cached."""
        pulled = self._lookup(Reference.parse(f"{self.name}:{path}@{commit}")) if self._lookup else None
        return self._resolved(Snapshot(self.calls, path, commit, self._kept), pulled[1]) if pulled else None

    def _resolved(
        self, snapshot: Snapshot, manifest: Manifest, files: UnmanifestedDelta | PackedSnapshot | None = None
    ) -> Resolved:
        exact = Reference.parse(str(snapshot))
        return Resolved(exact, manifest.digest, manifest, (files or snapshot).fetch)

    def _revision(self, path: str, version: str | None) -> str:
        """Return the git revision of a version."""
        if version is None or version == LATEST:
            return BRANCH
        if not is_digest(version):
            return version
        past = history(self.calls, path, f"Looking up {path}")
        if pushed := past.pushed(version):
            return pushed[-1]
        raise NoVersionError(f"{self.name}:{path}@{version}", (f"the commits of {self.place}",))

    def _unknown(self, path: str, revision: str, error: NoVersionError) -> NoVersionError:
        refs = names(self.calls, path, f"Looking up {path}")
        revisions = (*refs.tags, *refs.branches)
        near = closest(revision, revisions, limit=3, cutoff=0.6)
        return NoVersionError(error.what, (f"{self.place}: branches and tags {', '.join(revisions)}",), near)
