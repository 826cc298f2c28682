"""A push: one commit on top of the head just read, then git tags for the version and the aliases.

After a lost race for the commit, the push is repeated on top of the winner's, so both versions are in the history. An interrupted
push leaves no commit, or the complete one; the next push of the same content finds it and sets the tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltahub.checkpoint.checkpoint import CARD
from deltahub.checkpoint.from_files import MANIFEST, OWN_CARD
from deltahub.errors import ConfigError, ConflictError, IntegrityError, NotFoundError
from deltahub.reference import Digest, is_version
from deltahub.registry.commit_message import commit_id, with_digest
from deltahub.registry.edits import ANYTHING
from deltahub.registry.entries import merged_tags
from deltahub.registry.publish import Publication
from deltahub.sources.huggingface.calls import Calls
from deltahub.sources.huggingface.download import read
from deltahub.sources.huggingface.editor import HubEditor
from deltahub.sources.huggingface.git_tags import GitTags
from deltahub.sources.huggingface.history import BRANCH, Names, history, names
from deltahub.sources.huggingface.page import Card, completed_card, labels, page, tags_of
from deltahub.sources.huggingface.search import tags_of as tags_in
from deltahub.sources.huggingface.snapshot import Head, manifest_in, read_head
from deltahub.stores.retry import SwapRetry

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    CommitOperation = CommitOperationAdd | CommitOperationDelete


@dataclass(frozen=True)
class Published:
    """The result of a push.

    Attributes:
        commit: that holds the delta, 40 hex digits.
        new: whether this push created it.
        tags: of the page of the commit.
    """

    commit: str
    new: bool
    tags: tuple[str, ...]


class Push:
    """One push of a delta.

    Args:
        calls: to the hub.
        publication: the delta. Its aliases become git tags, and the first line of its message the title of the commit; the
            expected target of an alias is a version or a commit.
    """

    def __init__(self, calls: Calls, publication: Publication) -> None:
        self.calls, self.publication = calls, publication
        self.repo, self.folder, self.manifest = publication.reference.path, publication.folder, publication.manifest
        self.doing, self.subject = f"Pushing {self.repo}", f"{calls.name}:{self.repo}"

    def run(self) -> Published:
        """Push the delta.

        Raises:
            ConflictError: an alias does not point where expected, or every attempt lost the race.
            ConfigError: the hub does not accept the card, or an alias is a branch there.
            IntegrityError: a file changed since the manifest was made.
            UnreachableError: the hub did not answer.
            StorageError: the hub refused.
        """
        retry = SwapRetry()
        while True:
            head = self._head()
            refs = names(self.calls, self.repo, self.doing)
            self._require(refs)
            with retry:
                commit, is_new, tags = self._older(head, refs) or self._commit(head, refs)
                break
        if refs.document:  # it numbers its versions itself, and moves an alias in one step
            self._set_aliases(commit)
        else:
            git_tags = GitTags(self.calls, self.repo, self.doing, refs.tags)
            git_tags.number(commit)
            for alias in self.publication.aliases:
                git_tags.point(alias, commit)
        return Published(commit, is_new, tags)

    def _set_aliases(self, commit: str) -> None:
        """Point the aliases to the pushed version on a hub of DeltaHub.

        Raises:
            ConflictError: one no longer points where expected. The version is pushed.
            RefusedMoveError: the rules of promotion do not allow it. The version is pushed.
        """
        expect = self.publication.expect or {}
        for alias in self.publication.aliases:
            HubEditor(self.calls).set_alias(self.repo, alias, commit, expect=expect.get(alias, ANYTHING))

    # ----- existing content -----

    def _head(self) -> Head:
        """Return the head of the repo; create the repo if it does not exist."""
        try:
            return read_head(self.calls, self.repo, self.doing)
        except NotFoundError:
            self.calls.make(
                lambda: self.calls.api.create_repo(self.repo, private=self.publication.private, exist_ok=True),
                self.doing,
                self.subject,
            )
            return read_head(self.calls, self.repo, self.doing)

    def _require(self, refs: Names) -> None:
        for alias in self.publication.aliases:
            if alias in refs.branches:
                msg = f"{alias!r} is a branch of {self.subject}, so it cannot be an alias there. Choose another name."
                raise ConfigError(msg)
        for alias, expected in (self.publication.expect or {}).items():
            current = refs.tags.get(alias)
            if current != (self._commit_of(expected, refs) if expected else None):
                numbers = history(self.calls, self.repo, self.doing).numbers
                version = next((version for version, commit in numbers.items() if commit == current), current)
                raise ConflictError(f"The alias {alias!r} of {self.subject}", expected, version)

    def _commit_of(self, version: str, refs: Names) -> str:
        if is_version(version) and version not in refs.tags:  # of a hub that numbers its commits itself
            return history(self.calls, self.repo, self.doing).numbers.get(version, version)
        return refs.tags.get(version, version)

    def _older(self, head: Head, refs: Names) -> tuple[str, bool, tuple[str, ...]] | None:
        """Return an older commit than the head with exactly this content, if any; its page stays unchanged.

        A DeltaHub hub adds new tags to an older version, as any registry does, so with new tags it gets the commit.
        """
        digest = self.manifest.digest
        if head.manifest is not None and head.manifest.digest == digest:
            return None
        if refs.document:
            for entry in refs.document.versions.values():
                if entry.digest == digest and merged_tags(entry.tags, self.publication.tags) != entry.tags:
                    return None
        for commit in reversed(history(self.calls, self.repo, self.doing, refs).pushed(digest)):
            manifest = manifest_in(read(self.calls, self.repo, commit, MANIFEST, self.doing).data)
            if manifest is not None and manifest.digest == digest:
                return commit, False, self._tags_at(commit)
        return None

    # ----- the commit -----

    def _commit(self, head: Head, refs: Names) -> tuple[str, bool, tuple[str, ...]]:
        """Commit the changes.

        Raises:
            ConflictError: another commit came first.
        """
        from huggingface_hub.errors import HfHubHTTPError

        card_path = self.folder / CARD if any(entry.path == CARD for entry in self.manifest.files) else None
        card = card_path.read_bytes() if card_path else None
        previous_card = completed_card(head.card, head.manifest.config) if head.manifest else Card()
        content = page(
            card, completed_card(card, self.manifest.config), self.publication.tags, head.page, previous_card
        )
        tags = labels(tags_of(Card.read(content)))
        is_same = head.manifest is not None and head.manifest.digest == self.manifest.digest
        if is_same and content == head.page:
            return head.commit, False, self._tags_at(head.commit)
        title, text = with_digest(self.publication.message, self.manifest.digest)
        deleted_paths = self._deleted_paths(head)

        def commit() -> str | None:
            try:
                operations = self._operations(content, card, deleted_paths)
                with _quiet():
                    self._upload(operations)
                    return self.calls.api.create_commit(
                        self.repo,
                        operations,
                        commit_message=title,
                        commit_description=text,
                        parent_commit=head.commit,
                        revision=BRANCH,
                    ).oid
            except HfHubHTTPError as error:
                if error.response.status_code in (409, 412):
                    return None
                raise

        oid = self.calls.make(commit, self.doing, self.subject, self.manifest.size)
        if oid is None:
            raise ConflictError(self.subject, head.commit, "a new commit at every try")
        entries = refs.document.versions.values() if refs.document else ()
        is_new = not is_same and oid not in {commit_id(entry.digest) for entry in entries}
        return oid, is_new, tags if is_new else self._tags_at(oid)

    def _tags_at(self, commit: str) -> tuple[str, ...]:
        """Return the tags known to the hub; a DeltaHub hub stores them separately from the page."""
        info = self.calls.make(lambda: self.calls.api.model_info(self.repo, revision=commit), self.doing, self.subject)
        return tags_in(info)

    def _operations(self, content: bytes, card: bytes | None, deleted_paths: set[str]) -> list[CommitOperation]:
        """Return the operations of the commit, built again for every attempt: the client marks those already sent."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        adds = [
            CommitOperationAdd(MANIFEST, self.manifest.to_bytes()),
            CommitOperationAdd(CARD, content),
            *([CommitOperationAdd(OWN_CARD, card)] if card is not None else []),
        ]
        for entry in self.manifest.files:
            source = card if entry.path == CARD and card is not None else str(self.folder / entry.path)
            add = CommitOperationAdd(entry.path, source)
            if add.upload_info.sha256.hex() != entry.sha256:
                raise IntegrityError(
                    str(self.folder / entry.path),
                    Digest.of_hex(entry.sha256),
                    Digest.of_hex(add.upload_info.sha256.hex()),
                    "It changed while it was published; repeat.",
                )
            if entry.path != CARD:
                adds.append(add)
        return [*adds, *(CommitOperationDelete(path, is_folder=False) for path in sorted(deleted_paths))]

    def _upload(self, operations: Sequence[CommitOperation]) -> None:
        """Upload the large files before the commit; the repo's .gitignore is not applied, since it could exclude parts of the delta.

        Raises:
            ConfigError: the hub excludes files nevertheless.
        """
        from huggingface_hub import CommitOperationAdd

        adds = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        self.calls.api.preupload_lfs_files(self.repo, adds, revision=BRANCH, gitignore_content="", free_memory=False)
        if ignored := [add.path_in_repo for add in adds if add._should_ignore]:
            msg = f"{self.calls.place} leaves out {', '.join(ignored)} by its .gitignore. Correct that file in {self.repo}, and push again."
            raise ConfigError(msg)

    def _deleted_paths(self, head: Head) -> set[str]:
        """Return the files of the last version that this one lacks, as far as they still exist."""
        new_paths = {entry.path for entry in self.manifest.files}
        old_paths = {entry.path for entry in head.manifest.files} if head.manifest else set()
        paths = (
            (old_paths | {OWN_CARD}) - new_paths - {CARD} if CARD in old_paths - new_paths else old_paths - new_paths
        )
        if not paths:
            return paths
        existing_paths = self.calls.make(
            lambda: self.calls.api.list_repo_files(self.repo, revision=head.commit), self.doing, self.subject
        )
        return paths & set(existing_paths)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of huggingface_hub, which DeltaHub's own replace."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
