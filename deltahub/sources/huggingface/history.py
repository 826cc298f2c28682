"""The history of a repo: its commits and git tags, as the reference document of a registry.

A push of DeltaHub creates one commit, whose message ends with the digest of the pushed content, and a git tag `v1`, `v2`, ... for
it. Other git tags are aliases. In a repo without such tags the commits are the versions, numbered from the oldest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from deltahub.errors import ConfigError, ReferenceSyntaxError
from deltahub.files.documents import canonical_json
from deltahub.reference import DeltaPath, check_git_tag, is_version
from deltahub.registry.commit_message import CommitDigest, commit_id, digest_in, without_digest
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, Version, number
from deltahub.sources.huggingface.calls import Calls
from deltahub.stores.retry import HUB_TIMEOUT

if TYPE_CHECKING:
    from huggingface_hub.hf_api import GitCommitInfo

BRANCH: Final = "main"
DOCUMENT: Final = "deltahub"  # key of the reference document that a DeltaHub hub adds to its list of refs


@dataclass(frozen=True)
class Names:
    """Targets of a repo's git tags and branches.

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
    """The commits of a repo's main branch, and its refs.

    Attributes:
        commits: oldest first; empty if the refs have a document, which contains the same information.
        names: its git tags and branches.
    """

    commits: tuple[GitCommitInfo, ...]
    names: Names

    @property
    def numbers(self) -> dict[str, str]:
        """Version to commit, oldest first; of several numbers for a commit the first counts, and the others are aliases."""
        tags, document = self.names.tags, self.names.document
        if document:
            return {version: commit_id(entry.digest) for version, entry in document.versions.items()}
        first_tags: dict[str, str] = {}
        for tag in sorted(filter(is_version, tags), key=number):
            first_tags.setdefault(tags[tag], tag)
        tagged_versions = {tag: commit for commit, tag in first_tags.items()}
        return tagged_versions or {f"v{index}": commit.commit_id for index, commit in enumerate(self.commits, 1)}

    def pushed(self, digest: str) -> list[str]:
        """Return the commits recorded as a push of this content, oldest first.

        Args:
            digest: the digest, or its beginning.
        """
        if document := self.names.document:
            entries = document.versions.values()
            return [
                commit_id(entry.digest)
                for entry in entries
                if entry.digest.startswith(digest) or (digest_in(entry.message) or "").startswith(digest)
            ]
        return [commit.commit_id for commit in self.commits if (digest_in(commit.message) or "").startswith(digest)]


def names(calls: Calls, repo: str, doing: str) -> Names:
    """Request the git tags and branches of a repo, in one request.

    Raises:
        NotFoundError: the repo does not exist, or is hidden from this token.
        UnreachableError: the hub did not answer.
        StorageError: the hub refused.
    """
    from huggingface_hub.utils import get_session, hf_raise_for_status

    def ask() -> Any:  # huggingface_hub's own call drops the additions of a DeltaHub hub
        answer = get_session().get(
            f"{calls.endpoint}/api/models/{repo}/refs", headers=calls.headers(), timeout=HUB_TIMEOUT
        )
        hf_raise_for_status(answer)
        return answer.json()

    try:
        refs = calls.make(ask, doing, f"{calls.name}:{repo}")
        tags, branches = (
            {str(ref["name"]): str(ref["targetCommit"]) for ref in refs[kind]} for kind in ("tags", "branches")
        )
        document = _document(repo, refs[DOCUMENT]) if DOCUMENT in refs else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = f"{calls.place} does not answer with branches and tags, so it is not a hub of this protocol. Check its address."
        raise ConfigError(msg) from error
    return Names(tags, branches, document)


def _document(repo: str, added: Any) -> ReferenceDocument:
    return ReferenceDocument.from_bytes(canonical_json(added), repo) if added else ReferenceDocument(DeltaPath(repo))


def history(calls: Calls, repo: str, doing: str, refs: Names | None = None) -> History:
    """Request the history of a repo: one request for its refs and, unless they have a document, one per page of commits.

    Args:
        refs: the refs, if they were requested already.

    Raises:
        NotFoundError: the repo does not exist, or is hidden from this token.
        UnreachableError: the hub did not answer.
        StorageError: the hub refused.
    """
    refs = refs or names(calls, repo, doing)
    if refs.document:
        return History((), refs)
    commits = calls.make(lambda: calls.api.list_repo_commits(repo), doing, f"{calls.name}:{repo}")
    return History(tuple(reversed(commits)), refs)


def document(path: DeltaPath, past: History, tags: tuple[str, ...] = ()) -> ReferenceDocument:
    """Return the history as a reference document; the hub's own, if it has one.

    Args:
        tags: of the newest version.
    """
    if past.names.document:
        return past.names.document
    commits = {commit.commit_id: commit for commit in past.commits}
    versions = {version: _version(commit, commits.get(commit)) for version, commit in past.numbers.items()}
    if versions:
        newest_version = [*versions][-1]
        versions[newest_version] = replace(versions[newest_version], tags=tags)
    newest = {commit: version for version, commit in past.numbers.items()}
    tags_of_commits = {tag: newest[commit] for tag, commit in past.names.tags.items() if commit in newest}
    aliases = {tag: version for tag, version in tags_of_commits.items() if tag != version and _is_alias(tag)}
    log = [Move(entry.time, entry.author, "push", version, after=entry.digest) for version, entry in versions.items()]
    return ReferenceDocument(path, versions, aliases, tuple(log))


def _version(commit: str, info: GitCommitInfo | None) -> Version:
    """Return the version entry of a commit; without a digest, the commit id takes its place."""
    if info is None:  # on another branch
        return Version(CommitDigest(commit), "", "")
    message = without_digest(f"{info.title}\n\n{info.message}")
    time = info.created_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Version(digest_in(info.message) or CommitDigest(commit), time, ", ".join(info.authors), message)


def _is_alias(tag: str) -> bool:
    try:
        return bool(check_git_tag(tag))
    except ReferenceSyntaxError:
        return False
