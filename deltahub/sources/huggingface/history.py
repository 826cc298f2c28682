"""What a repo says of its versions: its commits and tags, as the reference document of a registry would say it.

A push of DeltaHub makes one commit, whose message ends in the digest of what was pushed, and a git tag `v1`, `v2`, ... for it.
Other git tags are aliases. A repo without such tags has its commits for versions, numbered from the oldest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from deltahub.errors import ConfigError, ReferenceSyntaxError
from deltahub.manifest import canonical_json
from deltahub.reference import check_git_tag, is_version
from deltahub.registry.commit_message import commit_id, digest_in, without_digest
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, Version, number
from deltahub.sources.huggingface.calls import TIMEOUT, Calls

if TYPE_CHECKING:
    from huggingface_hub.hf_api import GitCommitInfo

BRANCH: Final = "main"
DOCUMENT: Final = "deltahub"  # the key by which a hub of DeltaHub adds its reference document to its list of refs


@dataclass(frozen=True)
class Names:
    """What the git tags and branches of a repo point to.

    Attributes:
        tags: git tag to commit.
        branches: branch to commit.
        document: the reference document of a hub of DeltaHub, without a version for a new repo; None from any other hub.
    """

    tags: Mapping[str, str]
    branches: Mapping[str, str]
    document: ReferenceDocument | None = None


@dataclass(frozen=True)
class History:
    """The commits of a repo's main branch, and its names for commits.

    Attributes:
        commits: oldest first; none where the names have a document, which says all of them.
        names: its git tags and branches.
    """

    commits: tuple[GitCommitInfo, ...]
    names: Names

    @property
    def numbers(self) -> dict[str, str]:
        """Version to commit, oldest first; of several numbers of one commit the first, for the others are aliases."""
        tags, document = self.names.tags, self.names.document
        if document:
            return {version: commit_id(entry.digest) for version, entry in document.versions.items()}
        first: dict[str, str] = {}
        for tag in sorted(filter(is_version, tags), key=number):
            first.setdefault(tags[tag], tag)
        found = {tag: commit for commit, tag in first.items()}
        return found or {f"v{index}": it.commit_id for index, it in enumerate(self.commits, 1)}

    def pushed(self, digest: str) -> list[str]:
        """The commits that say that a push of this content made them, oldest first.

        Args:
            digest: or the beginning of one.
        """
        if document := self.names.document:
            entries = document.versions.values()
            return [
                commit_id(it.digest)
                for it in entries
                if it.digest.startswith(digest) or (digest_in(it.message) or "").startswith(digest)
            ]
        return [it.commit_id for it in self.commits if (digest_in(it.message) or "").startswith(digest)]


def names(calls: Calls, repo: str, doing: str) -> Names:
    """Ask for the git tags and branches of a repo: one request.

    Raises:
        NotFoundError: there is no such repo, or not for this token.
        UnreachableError: there was no answer.
        StorageError: the hub refused.
    """
    from huggingface_hub.utils import get_session, hf_raise_for_status

    def ask() -> Any:  # huggingface_hub's own call drops what a hub of DeltaHub adds
        answer = get_session().get(f"{calls.endpoint}/api/models/{repo}/refs", headers=calls.headers(), timeout=TIMEOUT)
        hf_raise_for_status(answer)
        return answer.json()

    try:
        refs = calls.make(ask, doing, f"{calls.name}:{repo}")
        tags, branches = (
            {str(it["name"]): str(it["targetCommit"]) for it in refs[kind]} for kind in ("tags", "branches")
        )
        document = _document(repo, refs[DOCUMENT]) if DOCUMENT in refs else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = f"{calls.place} does not answer with branches and tags, so it is not a hub of this protocol. Check its address."
        raise ConfigError(msg) from error
    return Names(tags, branches, document)


def _document(repo: str, added: Any) -> ReferenceDocument:
    return ReferenceDocument.from_bytes(canonical_json(added), repo) if added else ReferenceDocument(repo)


def history(calls: Calls, repo: str, doing: str, known: Names | None = None) -> History:
    """Ask for the history of a repo: one request for its names, and one for every page of commits if those do not say it.

    Args:
        known: the names, if they were asked for just now.

    Raises:
        NotFoundError: there is no such repo, or not for this token.
        UnreachableError: there was no answer.
        StorageError: the hub refused.
    """
    known = known or names(calls, repo, doing)
    if known.document:
        return History((), known)
    commits = calls.make(lambda: calls.api.list_repo_commits(repo), doing, f"{calls.name}:{repo}")
    return History(tuple(reversed(commits)), known)


def document(name: str, known: History, tags: tuple[str, ...] = ()) -> ReferenceDocument:
    """Return the history as a reference document: the hub's own, if it has one.

    Args:
        name: ``"namespace/name"``.
        tags: of the newest version.
    """
    if known.names.document:
        return known.names.document
    commits = {it.commit_id: it for it in known.commits}
    versions = {version: _version(commit, commits.get(commit)) for version, commit in known.numbers.items()}
    if versions:
        newest_version = [*versions][-1]
        versions[newest_version] = replace(versions[newest_version], tags=tags)
    newest = {commit: version for version, commit in known.numbers.items()}
    tags_of_commits = {tag: newest[commit] for tag, commit in known.names.tags.items() if commit in newest}
    aliases = {tag: version for tag, version in tags_of_commits.items() if tag != version and _alias(tag)}
    log = [Move(it.time, it.author, "push", version, after=it.digest) for version, it in versions.items()]
    return ReferenceDocument(name, versions, aliases, tuple(log))


def _version(commit: str, said: GitCommitInfo | None) -> Version:
    """What is known of one commit; without a digest it is called by its commit."""
    if said is None:  # on another branch
        return Version(f"commit:{commit}", "", "")
    message = without_digest(f"{said.title}\n\n{said.message}")
    time = said.created_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Version(digest_in(said.message) or f"commit:{commit}", time, ", ".join(said.authors), message)


def _alias(tag: str) -> bool:
    try:
        return bool(check_git_tag(tag))
    except ReferenceSyntaxError:
        return False
