"""Versions and aliases as git tags of a repo. The hub can create and delete a tag atomically, but not move one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

from deltahub.errors import ConflictError, NotFoundError
from deltahub.reference import is_version
from deltahub.registry.entries import number
from deltahub.sources.huggingface.calls import Calls
from deltahub.stores.retry import SwapRetry

_TAKEN: Final = 409
_ITS_OWN: Final = 400  # status for a name with a special meaning on the hub


class GitTags:
    """The git tags of a repo.

    Args:
        calls: to its hub.
        repo: ``"namespace/name"``.
        doing: the operation, for messages.
        commits: git tag to commit, as last read.
    """

    def __init__(self, calls: Calls, repo: str, doing: str, commits: Mapping[str, str]) -> None:
        self._calls, self._repo, self._doing, self._subject = calls, repo, doing, f"{calls.name}:{repo}"
        self._commits = dict(commits)

    def number(self, commit: str) -> None:
        """Give a commit a version, the next git tag of v1, v2, ..., if it has none.

        A hub that numbers its commits itself refuses such tags, which is accepted.

        Raises:
            ConflictError: the next number was taken concurrently at every attempt.
        """
        retry = SwapRetry()
        while True:
            tags = {tag: target for tag, target in self._commits.items() if is_version(tag)}
            if commit in tags.values():
                return
            version = f"v{max(map(number, tags), default=0) + 1}"
            with retry:
                if self._set(version, commit, unless=_ITS_OWN):
                    return
                raise ConflictError(
                    f"The next version of {self._subject}", version, "a version of another push at every attempt"
                )

    def point(self, alias: str, commit: str) -> None:
        """Point an alias to a commit; an existing tag for another commit is deleted and created again.

        Raises:
            ConflictError: it was moved concurrently at every attempt.
        """
        retry = SwapRetry()
        while True:
            if self._commits.get(alias) == commit:
                return
            if alias in self._commits:
                self._delete(alias)
            with retry:
                if self._set(alias, commit):
                    return
                raise ConflictError(f"The alias {alias!r} of {self._subject}", commit, self._commits.get(alias))

    def _set(self, tag: str, commit: str, unless: int = 0) -> bool:
        """Create a tag; if it exists already, reread all tags and return False.

        Args:
            unless: the status with which the hub may refuse it.
        """
        from huggingface_hub.errors import HfHubHTTPError

        def call() -> bool:
            try:
                self._calls.api.create_tag(self._repo, tag=tag, revision=commit)
            except HfHubHTTPError as error:
                if error.response.status_code == unless:
                    return True
                if error.response.status_code == _TAKEN:
                    return False
                raise
            return True

        if self._calls.make(call, self._doing, self._subject):
            self._commits[tag] = commit
            return True
        refs = self._calls.make(lambda: self._calls.api.list_repo_refs(self._repo), self._doing, self._subject)
        self._commits = {ref.name: ref.target_commit for ref in refs.tags}
        return False

    def _delete(self, tag: str) -> None:
        with contextlib.suppress(NotFoundError):  # another client moves it too
            self._calls.make(lambda: self._calls.api.delete_tag(self._repo, tag=tag), self._doing, self._subject)
        del self._commits[tag]
