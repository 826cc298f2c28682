"""What a repo says of its versions: its commits and tags, as the reference document of a registry would say it.

A push of DeltaHub makes one commit, whose message ends in the digest of what was pushed, and a git tag `v1`, `v2`, ... for it.
Other git tags are aliases. A repo without such tags has its commits for versions, numbered from the oldest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from deltahub.errors import ReferenceSyntaxError
from deltahub.reference import check_alias, is_version
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, Version, number
from deltahub.sources.huggingface.calls import Calls

if TYPE_CHECKING:
    from huggingface_hub.hf_api import GitCommitInfo

BRANCH: Final = "main"
_TRAILER: Final = re.compile(r"^DeltaHub-Digest: (sha256:[0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True)
class Names:
    """What the git tags and branches of a repo point to.

    Attributes:
        tags: git tag to commit.
        branches: branch to commit.
    """

    tags: Mapping[str, str]
    branches: Mapping[str, str]


@dataclass(frozen=True)
class History:
    """The commits of a repo's main branch, and its names for commits.

    Attributes:
        commits: oldest first.
        names: its git tags and branches.
    """

    commits: tuple[GitCommitInfo, ...]
    names: Names

    @property
    def numbers(self) -> dict[str, str]:
        """Version to commit, oldest first."""
        tags = self.names.tags
        found = {tag: tags[tag] for tag in sorted(filter(is_version, tags), key=number)}
        return found or {f"v{index}": it.commit_id for index, it in enumerate(self.commits, 1)}

    def pushed(self, digest: str) -> list[str]:
        """The commits that say that a push of this content made them, oldest first.

        Args:
            digest: or the beginning of one.
        """
        return [it.commit_id for it in self.commits if (digest_in(it.message) or "").startswith(digest)]


def names(calls: Calls, repo: str, doing: str) -> Names:
    """Ask for the git tags and branches of a repo: one request.

    Raises:
        NotFoundError: there is no such repo, or not for this token.
        UnreachableError: there was no answer.
        StorageError: the hub refused.
    """
    refs = calls.make(lambda: calls.api.list_repo_refs(repo), doing, f"{calls.name}:{repo}")
    tags, branches = ({it.name: it.target_commit for it in kind} for kind in (refs.tags, refs.branches))
    return Names(tags, branches)


def history(calls: Calls, repo: str, doing: str) -> History:
    """Ask for the history of a repo: one request for its names, and one for every page of commits.

    Raises:
        NotFoundError: there is no such repo, or not for this token.
        UnreachableError: there was no answer.
        StorageError: the hub refused.
    """
    known = names(calls, repo, doing)
    commits = calls.make(lambda: calls.api.list_repo_commits(repo), doing, f"{calls.name}:{repo}")
    return History(tuple(reversed(commits)), known)


def trailer(message: str, digest: str) -> tuple[str, str]:
    """The title and the text of the commit that pushes a delta."""
    title, _, rest = message.strip().partition("\n")
    return title or f"Push {digest[:19]}", "\n\n".join(filter(None, (rest.strip(), f"DeltaHub-Digest: {digest}")))


def digest_in(message: str) -> str | None:
    """The digest that a commit says it pushes."""
    found = _TRAILER.findall(message)
    return found[-1] if found else None


def document(name: str, known: History, tags: tuple[str, ...] = ()) -> ReferenceDocument:
    """The history as a reference document.

    Args:
        name: ``"namespace/name"``.
        tags: of the newest version.
    """
    commits = {it.commit_id: it for it in known.commits}
    versions = {version: _version(commit, commits.get(commit)) for version, commit in known.numbers.items()}
    if versions:
        newest_version = [*versions][-1]
        versions[newest_version] = replace(versions[newest_version], tags=tags)
    newest = {commit: version for version, commit in known.numbers.items()}
    aliases = {tag: newest[commit] for tag, commit in known.names.tags.items() if commit in newest and _alias(tag)}
    log = [Move(it.time, it.author, "push", version, after=it.digest) for version, it in versions.items()]
    return ReferenceDocument(name, versions, aliases, tuple(log))


def _version(commit: str, said: GitCommitInfo | None) -> Version:
    """What is known of one commit; without a digest it is called by its commit."""
    if said is None:  # on another branch
        return Version(f"commit:{commit}", "", "")
    text = _TRAILER.sub("", said.message).strip()
    message = "\n\n".join(filter(None, (said.title, text)))
    time = said.created_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Version(digest_in(said.message) or f"commit:{commit}", time, ", ".join(said.authors), message)


def _alias(tag: str) -> bool:
    try:
        return bool(check_alias(tag))
    except ReferenceSyntaxError:
        return False
