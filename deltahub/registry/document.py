"""The reference document: all that may change about one delta, in one file that is swapped as a whole.

It holds the versions (each a digest that never changes), the aliases (the user's movable names for a version), the tags
of each version, and the log of every move. Every change makes a new document; none edits one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from deltahub.errors import CheckpointError, NotFoundError
from deltahub.manifest import Manifest, canonical_json
from deltahub.naming import backbone_name
from deltahub.nearest import closest
from deltahub.reference import LATEST, is_digest
from deltahub.schema import parse, problem

SCHEMA: Final = "reference.v1"
SCHEMA_VERSION: Final = 1


def merged_tags(old: Iterable[str], new: Iterable[str]) -> tuple[str, ...]:
    """All tags, sorted; of the pairs with one key only the last."""
    return tuple(sorted({tag[: tag.find("=") + 1] or tag: tag for tag in (*old, *new)}.values()))


@dataclass(frozen=True)
class Version:
    """One immutable version, and what is said about it.

    Attributes:
        digest: of its manifest.
        time: when it was pushed, ISO 8601 in UTC.
        author: who pushed it.
        message: why.
        tags: labels and key=value pairs, sorted.
        summary: what a list shows, so that it need not read the manifest.
    """

    digest: str
    time: str
    author: str
    message: str = ""
    tags: tuple[str, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """One entry of the log.

    Attributes:
        action: push, alias, unalias, tag or untag.
        what: the version, alias or tags concerned.
        before: what an alias pointed to, or the version concerned.
        after: what it points to now.
    """

    time: str
    author: str
    action: str
    what: str
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class ReferenceDocument:
    """Versions, aliases, tags and log of one delta.

    Attributes:
        name: ``"namespace/name"``.
        versions: ``"v1"``, ``"v2"``, ... in order.
        aliases: alias to version.
        log: oldest first.
    """

    name: str
    versions: Mapping[str, Version] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    log: tuple[Move, ...] = ()

    @property
    def latest(self) -> str:
        """The newest version."""
        return max(self.versions, key=lambda version: int(version[1:]))

    def resolve(self, version: str | None) -> str:
        """The version that a version, alias or digest means; None means the newest.

        Raises:
            NotFoundError: it means none, or more than one.
        """
        if version is None or version == LATEST:
            return self.latest
        if version in self.versions:
            return version
        if version in self.aliases:
            return self.aliases[version]
        if is_digest(version):
            found = [name for name, entry in self.versions.items() if entry.digest.startswith(version)]
            if len(found) == 1:
                return found[0]
        known = (*self.versions, *self.aliases, LATEST)
        near = closest(version, known, limit=3, cutoff=0.6)
        raise NotFoundError(f"{self.name}@{version}", (f"versions and aliases {', '.join(known)}",), near)

    def with_version(self, entry: Version) -> tuple[ReferenceDocument, str]:
        """Add a version, unless its content is one already; then only its new tags are added.

        Returns:
            The new document and the version.
        """
        same = next((name for name, known in self.versions.items() if known.digest == entry.digest), None)
        if same:
            return self.with_tags(same, entry.tags, (), entry.time, entry.author), same
        name = f"v{int(self.latest[1:]) + 1 if self.versions else 1}"
        move = Move(entry.time, entry.author, "push", name, after=entry.digest)
        return replace(self, versions={**self.versions, name: entry}, log=(*self.log, move)), name

    def with_alias(self, alias: str, version: str | None, time: str, author: str) -> ReferenceDocument:
        """Point an alias to a version, or remove it."""
        before = self.aliases.get(alias)
        if before == version:
            return self
        others = {name: target for name, target in self.aliases.items() if name != alias}
        aliases = {**others, alias: version} if version else others
        move = Move(time, author, "alias" if version else "unalias", alias, before, version)
        return replace(self, aliases=aliases, log=(*self.log, move))

    def with_tags(
        self, version: str, add: Collection[str], remove: Collection[str], time: str, author: str
    ) -> ReferenceDocument:
        """Add and remove tags of a version; a key=value pair takes the place of the pair with the same key."""
        entry = self.versions[version]
        tags = merged_tags([tag for tag in entry.tags if tag not in remove], add)
        log = self.log
        for action, names in (("tag", set(tags) - set(entry.tags)), ("untag", set(entry.tags) - set(tags))):
            if names:
                log = (*log, Move(time, author, action, ", ".join(sorted(names)), after=version))
        return replace(self, versions={**self.versions, version: replace(entry, tags=tags)}, log=log)

    def to_bytes(self) -> bytes:
        """The document as it is stored."""
        log = [
            {"time": m.time, "author": m.author, "action": m.action, "what": m.what, "from": m.before, "to": m.after}
            for m in self.log
        ]
        versions = {name: asdict(entry) for name, entry in self.versions.items()}
        return canonical_json(
            {
                "schema_version": SCHEMA_VERSION,
                "name": self.name,
                "versions": versions,
                "aliases": self.aliases,
                "log": log,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "") -> ReferenceDocument:
        """Read a stored document.

        Args:
            name: what it is stored under, ``"namespace/name"``, for messages.

        Raises:
            CheckpointError: it is no reference document that this version can read.
        """
        document: Any = None
        try:
            document = parse(data)
            wrong = problem(document, SCHEMA) or _dangling(document)
        except ValueError as error:
            wrong = str(error)
        if wrong:
            raise CheckpointError(_unreadable(name, wrong, document))
        versions = {
            name: Version(**{**entry, "tags": tuple(entry["tags"])}) for name, entry in document["versions"].items()
        }
        log = tuple(Move(m["time"], m["author"], m["action"], m["what"], m["from"], m["to"]) for m in document["log"])
        ordered = dict(sorted(versions.items(), key=lambda item: int(item[0][1:])))
        return cls(document["name"], ordered, document["aliases"], log)


def _unreadable(name: str, wrong: str, document: Any) -> str:
    what = f"The reference document of {name}" if name else "A reference document"
    schema = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        return f"{what} has schema_version {schema}; this deltahub reads {SCHEMA_VERSION}. Update deltahub."
    return (
        f"{what} is damaged: {wrong}. Restore refs/{name or '...'}.json in its registry from a copy, or move it away "
        "and push the delta again; the files of its versions are stored apart."
    )


def _dangling(document: Mapping[str, Any]) -> str | None:
    """An alias of a version that is not there."""
    for alias, version in document["aliases"].items():
        if version not in document["versions"]:
            return f"the alias {alias!r} points to {version}, which is not there"
    return None


def summary_of(manifest: Manifest) -> dict[str, object]:
    """What a list shows of a version."""
    keys = ("delta_type", "backbone_class", "backbone_hash")
    known = {key: manifest.config[key] for key in keys if manifest.config.get(key)}
    known["backbone_checkpoint_name"] = backbone_name(manifest.config)
    metrics = {str(m["metric_type"]): m["metric_value"] for m in manifest.metrics}
    return {**known, "size": manifest.size, "parameters": manifest.parameters["total"], "metrics": metrics}
