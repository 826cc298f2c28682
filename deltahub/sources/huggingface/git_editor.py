"""The changes to a repo of a hub that knows nothing of deltas, as far as git goes: an alias is a git tag, a tag is in the card.

Git keeps no log of tags, and every commit in its history. So there is nothing to undo, and a removed version loses its number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, NoReturn, TypeVar

from deltahub.checkpoint.checkpoint import CARD
from deltahub.errors import ConfigError, ConflictError, InUseError, NotFoundError
from deltahub.reference import DeltaPath, check_git_tag, check_tag, is_version
from deltahub.registry.amend import Amendment
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.editor import Edited
from deltahub.registry.edits import ANYTHING, Anything
from deltahub.registry.entries import merged_tags
from deltahub.sources.huggingface.calls import Calls
from deltahub.sources.huggingface.history import BRANCH, History, Names, document, history
from deltahub.sources.huggingface.page import Card, tags_of
from deltahub.sources.huggingface.search import tags_of as tags_in
from deltahub.sources.huggingface.snapshot import read_head

T = TypeVar("T")
_TAKEN: Final = (409, 412)  # statuses for a change that another one came before


class GitEditor:
    """The changes to a repo: see `deltahub.registry.editor.Editor`.

    Args:
        calls: to its hub.
        refs: the repo's git tags and branches, just read from the hub.
    """

    def __init__(self, calls: Calls, refs: Names) -> None:
        self._calls, self._refs = calls, refs

    def set_alias(
        self,
        path: DeltaPath,
        alias: str,
        version: str | None,
        *,
        expect: str | Anything | None = ANYTHING,
        reason: str = "",
    ) -> Edited:
        """See `Editor.set_alias`; a git tag is moved by deleting and creating it, as the hub cannot move one.

        Raises:
            ConflictError: it points elsewhere than expected, or another client created it meanwhile: then it may be gone, or theirs.
        """
        past = self._past(path)
        before = self._document(path, past)
        now, subject = before.aliases.get(alias), f"The alias {alias!r} of {self._calls.name}:{path}"
        if alias in self._refs.branches:
            raise InUseError(subject, "a branch has this name", "Choose another name.")
        if not isinstance(expect, Anything) and now != before.expected(expect):
            raise ConflictError(subject, expect, now)
        if version is None and now is None:
            raise NotFoundError(subject, (f"git tags {', '.join(self._refs.tags) or 'none'}",))
        target = None if version is None else past.numbers[before.resolve(version)]
        if target is not None:
            check_git_tag(alias)
        if target != self._refs.tags.get(alias):
            if now is not None:
                self._call(path, lambda: self._calls.api.delete_tag(path, tag=alias))
            if target is not None:
                self._create(path, alias, target, reason, ConflictError(subject, now, "a tag of another client"))
        return Edited(self._again(path))

    def undo(self, path: DeltaPath, alias: str | None = None, *, reason: str = "") -> NoReturn:
        """Refuse: git keeps no log of tags.

        Raises:
            ConfigError: always.
        """
        msg = f"{self._calls.place} keeps no log of aliases, so no move can be undone. Point the alias back: deltahub alias {self._calls.name}:{path}@VERSION {alias or 'ALIAS'}"
        raise ConfigError(msg)

    def set_tags(self, path: DeltaPath, version: str | None, add: Collection[str], remove: Collection[str]) -> Edited:
        """See `Editor.set_tags`; a commit changes the tags in the card, so only the newest version has tags.

        Raises:
            ConfigError: it is not the newest version.
            ConflictError: another commit came first.
        """
        before = self._document(path, self._past(path))
        name = before.resolve(version)
        if name != before.latest:
            msg = f"In {self._calls.place} the card has the tags, and only {before.latest}, the newest version, can be tagged."
            raise ConfigError(msg)
        head = read_head(self._calls, path, f"Changing {path}")
        card = Card.read(head.page)
        old = tags_of(card)
        if missing := [tag for tag in remove if tag not in old]:
            raise NotFoundError(
                f"The tag {missing[0]!r} of {self._calls.name}:{path}", (f"tags {', '.join(old) or 'none'}",)
            )
        kept = [tag for tag in old if tag not in remove]
        merged = merged_tags(kept, [check_tag(tag) for tag in add])
        tags = [*(tag for tag in kept if tag in merged), *(tag for tag in merged if tag not in kept)]
        if tags != old:
            self._commit(path, Card({**card.facts, "tags": tags}, card.text).to_bytes(), head.commit)
        return Edited(self._again(path), name)

    def remove(
        self, path: DeltaPath, version: str | None, *, message: str = "", needed: Collection[str] = ()
    ) -> Edited:
        """See `Editor.remove`; the git tag with its number goes, and the commit stays in the history.

        Raises:
            InUseError: an alias names it, it is the newest, or its digest is needed.
            ConfigError: the versions of this repo are its commits, which stay.
        """
        before = self._document(path, self._past(path))
        name = before.resolve(version)
        subject = f"{self._calls.name}:{path}@{name}"
        if name not in self._refs.tags or not is_version(name):
            msg = f"The versions of {self._calls.name}:{path} are its commits, which git keeps. Squash its history, or delete the repo."
            raise ConfigError(msg)
        if aliases := before.aliases_of(name):
            raise InUseError(subject, f"the alias {', '.join(aliases)} points to it", "Move or remove the alias first.")
        if name == before.latest:
            raise InUseError(subject, f"the branch {BRANCH} ends there", "Push another version first.")
        if before.versions[name].digest in needed:
            raise InUseError(subject, "the lock file pins it", "Lock another version first: deltahub lock")
        self._call(path, lambda: self._calls.api.delete_tag(path, tag=name))
        return Edited(self._again(path), name)

    def rename(self, path: DeltaPath, new: DeltaPath) -> Edited:
        """See `Editor.rename`."""
        if path != new:
            self._call(path, lambda: self._calls.api.move_repo(from_id=path, to_id=new))
        return Edited(self._again(new))

    def amend(self, path: DeltaPath, version: str | None, amendment: Amendment) -> NoReturn:
        """Refuse: a commit and its message stay.

        Raises:
            ConfigError: always.
        """
        msg = (
            f"{self._calls.place} is not a hub of DeltaHub, so versions cannot be amended there. "
            "Edit the card on its page, or push again with a message."
        )
        raise ConfigError(msg)

    def ask(self, path: DeltaPath, alias: str, version: str | None, reason: str) -> NoReturn:
        """Refuse: git protects no tags.

        Raises:
            ConfigError: always; likewise `approve`, `reject` and `record_probe`.
        """
        raise self._unguarded()

    def approve(self, path: DeltaPath, request: str) -> NoReturn:
        """Refuse: see `ask`."""
        raise self._unguarded()

    def reject(self, path: DeltaPath, request: str, reason: str = "") -> NoReturn:
        """Refuse: see `ask`."""
        raise self._unguarded()

    def record_probe(self, path: DeltaPath, version: str | None) -> NoReturn:
        """Refuse: see `ask`."""
        raise self._unguarded()

    def _unguarded(self) -> ConfigError:
        return ConfigError(f"{self._calls.place} has no rules of promotion: it is not a hub of DeltaHub.")

    def _past(self, path: DeltaPath) -> History:
        return history(self._calls, path, f"Looking up {path}", self._refs)

    def _document(self, path: DeltaPath, past: History) -> ReferenceDocument:
        return document(path, past)

    def _again(self, path: DeltaPath) -> ReferenceDocument:
        """Return the document after a change."""
        past = history(self._calls, path, f"Looking up {path}")
        info = self._call(path, lambda: self._calls.api.model_info(path))
        return document(path, past, tags_in(info))

    def _create(self, path: DeltaPath, tag: str, commit: str, reason: str, taken: ConflictError) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        def create() -> None:
            try:
                self._calls.api.create_tag(path, tag=tag, revision=commit, tag_message=reason or None)
            except HfHubHTTPError as error:
                if error.response.status_code in _TAKEN:
                    raise taken from error
                raise

        self._call(path, create)

    def _commit(self, path: DeltaPath, page: bytes, parent: str) -> None:
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HfHubHTTPError

        def commit() -> None:
            try:
                self._calls.api.create_commit(
                    path, [CommitOperationAdd(CARD, page)], commit_message="Tags", parent_commit=parent, revision=BRANCH
                )
            except HfHubHTTPError as error:
                if error.response.status_code in _TAKEN:
                    raise ConflictError(f"{self._calls.name}:{path}", parent, "a newer commit") from error
                raise

        self._call(path, commit)

    def _call(self, path: DeltaPath, call: Callable[[], T]) -> T:
        return self._calls.make(call, f"Changing {path}", f"{self._calls.name}:{path}")
