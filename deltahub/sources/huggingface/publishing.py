"""A push: one commit on top of the one that was read, then git tags for the version and the aliases.

Whoever loses the race for a commit reads what the winner left and builds on that, so both versions are in the history. A push
that is cut short has no commit, or the whole one; the next push of the same content finds it and sets the tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deltahub.checkpoint import CARD
from deltahub.describing import MANIFEST, OWN_CARD
from deltahub.errors import ConfigError, ConflictError, IntegrityError, NotFoundError
from deltahub.reference import is_version
from deltahub.registry.commit_message import commit_id, with_digest
from deltahub.registry.entries import merged_tags
from deltahub.registry.publishing import Publication
from deltahub.sources.huggingface.calls import Calls
from deltahub.sources.huggingface.head import Head, read_head
from deltahub.sources.huggingface.history import BRANCH, Names, history, names
from deltahub.sources.huggingface.marks import GitTags
from deltahub.sources.huggingface.page import Card, labels, page, tags_of, whole
from deltahub.sources.huggingface.searching import tags_of as tags_in
from deltahub.sources.huggingface.snapshot import manifest_in
from deltahub.sources.huggingface.transfer import read

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    CommitOperation = CommitOperationAdd | CommitOperationDelete

_ATTEMPTS: Final = 20  # of a commit, each after reading what others wrote


@dataclass(frozen=True)
class Published:
    """What a push left in a repo.

    Attributes:
        commit: that holds the delta, 40 hex digits.
        new: whether a push made it now.
        tags: of the page of the commit.
    """

    commit: str
    new: bool
    tags: tuple[str, ...]


class Push:
    """One push of one delta.

    Args:
        calls: to the hub.
        publication: what is pushed. Its aliases become git tags, and the first line of its message the title of the commit; what it
            expects of an alias is a version or a commit.
        private: whether a repo that is made for it is seen by its owners only; None for the hub's own rule.
    """

    def __init__(self, calls: Calls, publication: Publication, *, private: bool | None = None) -> None:
        self.calls, self.publication, self.private = calls, publication, private
        self.repo, self.folder, self.manifest = publication.reference.path, publication.folder, publication.manifest
        self.doing, self.what = f"Pushing {self.repo}", f"{calls.name}:{self.repo}"

    def run(self) -> Published:
        """Push.

        Raises:
            ConflictError: an alias points elsewhere than expected, or others were faster again and again.
            ConfigError: the hub does not take the card, or an alias is a branch there.
            IntegrityError: a file changed since the manifest was made.
            UnreachableError: there was no answer.
            StorageError: the hub refused.
        """
        for _ in range(_ATTEMPTS):
            head = self._head()
            known = names(self.calls, self.repo, self.doing)
            self._require(known)
            published = self._older(head, known) or self._commit(head, known)
            if published:
                commit, new, tags = published
                marks = GitTags(self.calls, self.repo, self.doing, known.tags)
                if not known.document:  # a hub of DeltaHub numbers its versions itself
                    marks.number(commit)
                for alias in self.publication.aliases:
                    marks.point(alias, commit)
                return Published(commit, new, tags)
        raise ConflictError(self.what, head.commit, "a new commit at every try")

    # ----- what is there -----

    def _head(self) -> Head:
        """The head of the repo, which is made if it is not there."""
        try:
            return read_head(self.calls, self.repo, self.doing)
        except NotFoundError:
            self.calls.make(
                lambda: self.calls.api.create_repo(self.repo, private=self.private, exist_ok=True),
                self.doing,
                self.what,
            )
            return read_head(self.calls, self.repo, self.doing)

    def _require(self, known: Names) -> None:
        for alias in self.publication.aliases:
            if alias in known.branches:
                msg = f"{alias!r} is a branch of {self.what}, so it cannot be an alias there. Choose another name."
                raise ConfigError(msg)
        for alias, expected in (self.publication.expect or {}).items():
            found = known.tags.get(alias)
            if found != (self._commit_of(expected, known) if expected else None):
                numbers = history(self.calls, self.repo, self.doing).numbers
                version = next((version for version, commit in numbers.items() if commit == found), found)
                raise ConflictError(f"The alias {alias!r} of {self.what}", expected, version)

    def _commit_of(self, version: str, known: Names) -> str:
        if is_version(version) and version not in known.tags:  # of a hub that numbers its commits itself
            return history(self.calls, self.repo, self.doing).numbers.get(version, version)
        return known.tags.get(version, version)

    def _older(self, head: Head, known: Names) -> tuple[str, bool, tuple[str, ...]] | None:
        """The commit that holds this very content already, if an older one than the head does; its page stays as it is.

        A hub of DeltaHub adds new tags to an older version, as any registry does, so it gets the commit if there are some.
        """
        digest = self.manifest.digest
        if head.manifest is not None and head.manifest.digest == digest:
            return None
        if known.document:
            for entry in known.document.versions.values():
                if entry.digest == digest and merged_tags(entry.tags, self.publication.tags) != entry.tags:
                    return None
        for commit in reversed(history(self.calls, self.repo, self.doing, known).pushed(digest)):
            found = manifest_in(read(self.calls, self.repo, commit, MANIFEST, self.doing).data)
            if found is not None and found.digest == digest:
                return commit, False, self._tags_at(commit)
        return None

    # ----- the commit -----

    def _commit(self, head: Head, known: Names) -> tuple[str, bool, tuple[str, ...]] | None:
        """Commit what is not there yet; None if somebody else was faster."""
        from huggingface_hub.errors import HfHubHTTPError

        own = self.folder / CARD if any(entry.path == CARD for entry in self.manifest.files) else None
        card = own.read_bytes() if own else None
        before = whole(head.card, head.manifest.config) if head.manifest else Card()
        content = page(card, whole(card, self.manifest.config), self.publication.tags, head.page, before)
        tags = labels(tags_of(Card.read(content)))
        same = head.manifest is not None and head.manifest.digest == self.manifest.digest
        if same and content == head.page:
            return head.commit, False, self._tags_at(head.commit)
        title, text = with_digest(self.publication.message, self.manifest.digest)
        gone = self._gone(head)

        def commit() -> str | None:
            try:
                operations = self._operations(content, card, gone)
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

        made = self.calls.make(commit, self.doing, self.what, self.manifest.size)
        if made is None:
            return None
        there = known.document.versions.values() if known.document else ()
        new = not same and made not in {commit_id(entry.digest) for entry in there}
        return made, new, tags if new else self._tags_at(made)

    def _tags_at(self, commit: str) -> tuple[str, ...]:
        """The tags that the hub knows; one of our own keeps them apart from the page."""
        info = self.calls.make(lambda: self.calls.api.model_info(self.repo, revision=commit), self.doing, self.what)
        return tags_in(info)

    def _operations(self, content: bytes, card: bytes | None, gone: set[str]) -> list[CommitOperation]:
        """What the commit adds and deletes, made anew for every try: the client marks what it has sent."""
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
                    f"sha256:{entry.sha256}",
                    f"sha256:{add.upload_info.sha256.hex()}",
                    "It changed while it was published; repeat.",
                )
            if entry.path != CARD:
                adds.append(add)
        return [*adds, *(CommitOperationDelete(path, is_folder=False) for path in sorted(gone))]

    def _upload(self, operations: Sequence[CommitOperation]) -> None:
        """Send the large files before the commit; no .gitignore of the repo is followed, for then parts of the delta would be missing.

        Raises:
            ConfigError: the hub leaves files out all the same.
        """
        from huggingface_hub import CommitOperationAdd

        adds = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        self.calls.api.preupload_lfs_files(self.repo, adds, revision=BRANCH, gitignore_content="", free_memory=False)
        if ignored := [add.path_in_repo for add in adds if add._should_ignore]:
            msg = f"{self.calls.place} leaves out {', '.join(ignored)} by its .gitignore. Correct that file in {self.repo}, and push again."
            raise ConfigError(msg)

    def _gone(self, head: Head) -> set[str]:
        """The files of the last version that this one does not have, as far as they are still there."""
        new = {entry.path for entry in self.manifest.files}
        old = {entry.path for entry in head.manifest.files} if head.manifest else set()
        gone = (old | {OWN_CARD}) - new - {CARD} if CARD in old - new else old - new
        if not gone:
            return gone
        there = self.calls.make(
            lambda: self.calls.api.list_repo_files(self.repo, revision=head.commit), self.doing, self.what
        )
        return gone & set(there)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of huggingface_hub: ours tells all that there is to tell."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
