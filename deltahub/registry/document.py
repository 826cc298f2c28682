"""The reference document: all mutable state of a delta, in one file that is swapped as a whole.

It holds the versions (each a digest that never changes), the aliases (the user's movable names for a version), the tags
of each version, a tombstone for each removed version, and the log of every move. A renamed delta leaves a document with its
new name. Documents are immutable: every change makes a new one.

Clients of a server with the protocol of the Hugging Face Hub may have branches: lines of versions beside the main one.
The newest version of the main line is the meaning of "latest".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from typing import Any, Final

from deltahub.errors import NoVersionError, RemovedError
from deltahub.files.documents import with_checksum
from deltahub.files.sized_cache import SizedCache
from deltahub.reference import LATEST, MAIN, DeltaPath, Digest, is_digest
from deltahub.registry.document_check import AMENDED_VERSION, PROMOTED_VERSION, SCHEMA_VERSION, read_whole
from deltahub.registry.entries import Move, MoveRequest, Moving, Removed, Version, merged_tags, number
from deltahub.text.suggestions import closest

NOBODY: Final = ""  # the author in the tombstones of a forgotten delta


@dataclass(frozen=True)
class ReferenceDocument:
    """The versions, aliases, tags and log of a delta.

    Attributes:
        name: the delta's name with its namespace.
        versions: ``"v1"``, ``"v2"``, ... in order.
        aliases: alias to version.
        log: oldest first.
        removed: the tombstones of removed versions.
        moved_to: the delta's current name, if it was renamed; then there are no versions here.
        moving: the rename under way, if any; nothing else may change until it is done.
        branches: the newest version of each line. The main line, ``"main"``, is listed only where it is not the newest of all.
        requests: moves of protected aliases that wait for approvals, by id: ``"r1"``, ``"r2"``, ...
    """

    name: DeltaPath
    versions: Mapping[str, Version] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    log: tuple[Move, ...] = ()
    removed: Mapping[str, Removed] = field(default_factory=dict)
    moved_to: DeltaPath | None = None
    branches: Mapping[str, str] = field(default_factory=dict)
    moving: Moving | None = None
    requests: Mapping[str, MoveRequest] = field(default_factory=dict)

    @property
    def latest(self) -> str:
        """The newest version of the main line.

        Raises:
            RemovedError: all versions were removed.
        """
        if not self.versions:
            last = max(self.removed, key=number)
            raise self._gone(last, self.name)
        return self.branches.get(MAIN) or max(self.versions, key=number)

    @property
    def names(self) -> frozenset[str]:
        """The name of the delta and those that it had before, which lead to it unless they were given to another."""
        return frozenset([self.name, *(move.before for move in self.log if move.action == "rename" and move.before)])

    def history(self, version: str) -> Iterator[str]:
        """Iterate over a version and its ancestors, newest first, without removed ones."""
        numbered = sorted({*self.versions, *self.removed}, key=number)
        positions = {name: position for position, name in enumerate(numbered)}
        step: str | None = version
        while step:
            entry, position = self.versions.get(step), positions[step]
            if entry:
                yield step
            before = numbered[position - 1] if position else None
            step = entry.parent if entry and entry.parent in positions else before

    def aliases_of(self, version: str) -> list[str]:
        """Return the aliases that point to a version, sorted."""
        return sorted(alias for alias, target in self.aliases.items() if target == version)

    def _gone(self, version: str, subject: str) -> RemovedError:
        entry = self.removed[version]
        return RemovedError(subject, entry.time, entry.author, entry.message, tuple(self.versions))

    def resolve(self, version: str | None) -> str:
        """Return the version named by a version, alias, branch or digest; None means the newest.

        Raises:
            NoVersionError: it matches no version, or more than one.
            RemovedError: it names a removed version.
        """
        if version is None or version == LATEST:
            return self.latest
        if version in self.versions:
            return version
        if version in self.aliases:  # first: a branch of the same name must not hide it
            return self.aliases[version]
        if version in self.branches:
            return self.branches[version]
        if version == MAIN:
            return self.latest
        if version in self.removed:
            raise self._gone(version, f"{self.name}@{version}")
        if is_digest(version):
            matches = [name for name, entry in self.versions.items() if entry.digest.startswith(version)]
            if len({self.versions[name].digest for name in matches}) == 1:
                return matches[-1]
            gone = [name for name, entry in self.removed.items() if entry.digest.startswith(version)]
            if gone and not matches:
                raise self._gone(gone[-1], f"{self.name}@{gone[-1]} ({self.removed[gone[-1]].digest})")
        names = (*self.versions, *self.aliases, LATEST)
        near = closest(version, names, limit=3, cutoff=0.6)
        raise NoVersionError(f"{self.name}@{version}", (f"versions and aliases {', '.join(names)}",), near)

    def expected(self, version: str | None) -> str | None:
        """Return the version that an alias is expected to point to, which may be given as "latest" or by its digest."""
        by_content = version is not None and (version == LATEST or is_digest(version))
        return self.resolve(version) if by_content and self.versions else version

    def version_for(self, digest: Digest) -> str:
        """Return the version with this content, or the version that a push would create."""
        same = next((name for name, entry in self.versions.items() if entry.digest == digest), None)
        return same or self._next()

    def with_version(self, entry: Version) -> tuple[ReferenceDocument, str]:
        """Add a version; if one already has this content, add only the new tags.

        Returns:
            The new document and the version.
        """
        name = self.version_for(entry.digest)
        if name in self.versions:
            return self.with_tags(name, entry.tags, (), entry.time, entry.author), name
        move = Move(entry.time, entry.author, "push", name, after=entry.digest)
        others = {branch: target for branch, target in self.branches.items() if branch != MAIN}
        return replace(self, versions={**self.versions, name: entry}, log=(*self.log, move), branches=others), name

    def _next(self) -> str:
        """Return the next version number that neither a version, removed or not, nor a tag of a Hub client uses."""
        last = max(map(number, (*self.versions, *self.removed)), default=0)
        return next(name for at in count(last + 1) if (name := f"v{at}") not in self.aliases)

    def with_branch(self, branch: str, version: str | None, time: str, author: str) -> ReferenceDocument:
        """Point a branch to a version, or remove it; the main branch always exists."""
        before = self.latest if branch == MAIN else self.branches.get(branch)
        if before == version:
            return self
        branches = {name: target for name, target in self.branches.items() if name != branch}
        if version and (branch != MAIN or version != max(self.versions, key=number)):
            branches[branch] = version
        move = Move(time, author, "branch", branch, before, version)
        return replace(self, branches=branches, log=(*self.log, move))

    def with_alias(
        self,
        alias: str,
        version: str | None,
        time: str,
        author: str,
        reason: str = "",
        approved: tuple[str, ...] = (),
    ) -> ReferenceDocument:
        """Point an alias to a version, or remove it; requests for other moves of this alias from its former target are void.

        Args:
            approved: who approved the move.
        """
        before = self.aliases.get(alias)
        if before == version:
            return self
        others = {name: target for name, target in self.aliases.items() if name != alias}
        aliases = {**others, alias: version} if version else others
        action = "alias" if version else "unalias"
        move = Move(time, author, action, alias, before, version, reason, approved)
        requests = {key: request for key, request in self.requests.items() if request.alias != alias}
        return replace(self, aliases=aliases, log=(*self.log, move), requests=requests)

    def with_tags(
        self, version: str, add: Collection[str], remove: Collection[str], time: str, author: str
    ) -> ReferenceDocument:
        """Add and remove tags of a version; a key=value pair replaces the pair with the same key."""
        entry = self.versions[version]
        tags = merged_tags([tag for tag in entry.tags if tag not in remove], add)
        log = self.log
        for action, names in (("tag", set(tags) - set(entry.tags)), ("untag", set(entry.tags) - set(tags))):
            if names:
                log = (*log, Move(time, author, action, ", ".join(sorted(names)), after=version))
        return replace(self, versions={**self.versions, version: replace(entry, tags=tags)}, log=log)

    @property
    def amended(self) -> bool:
        """Whether any version was amended after its push."""
        return any(move.action == "amend" for move in self.log)

    def with_amended(self, version: str, entry: Version, moves: Collection[Move]) -> ReferenceDocument:
        """Replace the amendable values of a version; its digest stays.

        Args:
            moves: the changes, for the log.
        """
        assert entry.digest == self.versions[version].digest
        return replace(self, versions={**self.versions, version: entry}, log=(*self.log, *moves))

    def without_version(self, version: str, time: str, author: str, message: str = "") -> ReferenceDocument:
        """Replace a version with a tombstone; no alias or branch may point to it."""
        entry = self.versions[version]
        rest = {name: other for name, other in self.versions.items() if name != version}
        removed = {**self.removed, version: Removed(entry.digest, time, author, message, entry.message)}
        move = Move(time, author, "remove", version, before=entry.digest)
        requests = {key: asked for key, asked in self.requests.items() if asked.after != version}
        changed = replace(self, versions=rest, removed=removed, log=(*self.log, move), requests=requests)
        if self.branches and version == self.latest:  # the newest remaining version may belong to another line
            before = next(islice(self.history(version), 1, None), None)
            return changed.with_branch(MAIN, before, time, author) if before else changed
        return changed

    def forgotten(self, time: str) -> ReferenceDocument:
        """Remove everything but the numbers and digests of the versions, so that the document discloses nothing else."""
        digests = {name: entry.digest for entries in (self.versions, self.removed) for name, entry in entries.items()}
        removed = {name: Removed(digests[name], time, NOBODY) for name in sorted(digests, key=number)}
        last = max(removed, key=number)
        return ReferenceDocument(
            self.name, removed=removed, log=(Move(time, NOBODY, "remove", last, before=digests[last]),)
        )

    def remembered(self) -> ReferenceDocument:
        """Return the document without the tombstones of a forgotten delta that had this name before."""
        removed = {name: entry for name, entry in self.removed.items() if entry.author != NOBODY}
        return replace(self, removed=removed, log=tuple(move for move in self.log if move.author != NOBODY))

    def last_alias_move(self, alias: str | None = None) -> Move | None:
        """Return the newest move not yet undone of an alias, or of any; None if there is none."""
        undone: Counter[str] = Counter()
        for move in reversed(self.log):
            if move.action == "undo":
                undone[move.what] += 1
            elif move.action in ("alias", "unalias") and alias in (None, move.what):
                if not undone[move.what]:
                    return move
                undone[move.what] -= 1
        return None

    def with_undone(self, move: Move, time: str, author: str, reason: str = "") -> ReferenceDocument:
        """Undo the move that `last_alias_move` returned."""
        changed = self.with_alias(move.what, move.before, time, author)
        entry = Move(time, author, "undo", move.what, move.after, move.before, reason)
        return replace(changed, log=(*self.log, entry))

    def renamed(self) -> tuple[ReferenceDocument, ReferenceDocument]:
        """Return the document under its new name and the redirect under the old one, for a document with a pending rename.

        Both have the whole log, so that no document ever equals an earlier one under its name.
        """
        assert self.moving
        name = self.moving.to
        move = Move(self.moving.time, self.moving.author, "rename", name, self.name, name)
        moved = replace(self, name=name, log=(*self.log, move), moving=None)
        return moved, ReferenceDocument(self.name, log=moved.log, moved_to=name)

    def to_bytes(self) -> bytes:
        """Return the document as it is stored."""
        log = [move.to_dict() for move in self.log]
        versions = {name: entry.to_dict() for name, entry in self.versions.items()}
        document: dict[str, Any] = {
            "schema_version": self._schema_version,
            "name": self.name,
            "versions": versions,
            "aliases": self.aliases,
            "log": log,
        }
        if self.branches:
            document["branches"] = self.branches
        if self.removed:
            document["removed"] = {name: entry.to_dict() for name, entry in self.removed.items()}
        if self.moved_to is not None:
            document["moved_to"] = self.moved_to
        if self.moving is not None:
            document["moving"] = asdict(self.moving)
        if self.requests:
            document["requests"] = {key: request.to_dict() for key, request in self.requests.items()}
        return with_checksum(document)

    @property
    def _schema_version(self) -> int:
        if self.requests or any(move.extended for move in self.log):
            return PROMOTED_VERSION
        return AMENDED_VERSION if self.amended else SCHEMA_VERSION

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "") -> ReferenceDocument:
        """Read a stored document.

        Args:
            name: the name it is stored under, ``"namespace/name"``, for messages.

        Raises:
            IntegrityError: it is not a valid reference document.
            CheckpointError: a later deltahub wrote it.
        """
        return _RECENT.get((data, name), lambda: _read(data, name))


def _read(data: bytes, name: str) -> ReferenceDocument:
    document = read_whole(data, name)
    versions = {name: Version.from_dict(entry) for name, entry in document["versions"].items()}
    removed = {
        name: Removed(**{**entry, "digest": Digest(entry["digest"])})
        for name, entry in document.get("removed", {}).items()
    }
    log = tuple(map(Move.from_dict, document["log"]))
    ordered = {name: versions[name] for name in sorted(versions, key=number)}
    gone = {name: removed[name] for name in sorted(removed, key=number)}
    moved = DeltaPath(document["moved_to"]) if "moved_to" in document else None
    moving = Moving.from_dict(document["moving"]) if "moving" in document else None
    path, branches = DeltaPath(document["name"]), document.get("branches", {})
    requests = {key: MoveRequest.from_dict(stored) for key, stored in document.get("requests", {}).items()}
    return ReferenceDocument(path, ordered, document["aliases"], log, gone, moved, branches, moving, requests)


def _weight(document: ReferenceDocument) -> int:
    """Return the approximate memory of a document and its stored bytes, in bytes."""
    return 10_000 + 3000 * len(document.versions) + 1000 * (len(document.log) + len(document.removed))


# A server reads the same few documents over and over.
_RECENT: Final[SizedCache[tuple[bytes, str], ReferenceDocument]] = SizedCache(64 << 20, _weight)
