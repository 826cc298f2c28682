"""Whether a registry holds what those who changed it were told: nothing lost, nothing that nobody wrote, nothing half done."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, merged_tags
from deltahub.registry.gc import collect, used
from deltahub.registry.registry import Registry
from deltahub.registry.verify import verify
from deltahub.stores.base import object_key

Entry = dict[str, Any]
UNSURE = ("StorageError",)  # after these nobody knows whether it was done


def check(registry: Registry, entries: Sequence[Entry]) -> Counter[str]:
    """Compare a registry that nobody changes any more with what all who changed it were told.

    Returns:
        How often what happened: each action that was acknowledged, and each error.

    Raises:
        AssertionError: something was lost, was never written, or contradicts itself.
    """
    documents = {path: registry.document(path) for path in registry.names()}
    assert not {place: damage for place, damage in verify(registry) if damage}
    for document in documents.values():
        require_replay(document)
    require_acknowledged(documents, entries)
    require_no_reported_damage(entries)
    collect(registry, timedelta())
    collect(registry, timedelta())
    assert {key for key, _ in registry.store.keys("objects/")} == {object_key(sha256) for sha256 in used(registry)}
    assert not {place: damage for place, damage in verify(registry) if damage}
    counts = Counter(
        f"{entry['action']} {entry['error']}" if "error" in entry else entry["action"] for entry in entries
    )
    counts["versions checked"] = sum(len(document.versions) for document in documents.values())
    counts["log entries checked"] = sum(len(document.log) for document in documents.values())
    return counts


def require_replay(document: ReferenceDocument) -> None:
    """What a document says is what its log leads to, move by move, each from where the one before it led."""
    versions: dict[str, str] = {}
    removed: dict[str, str] = {}
    aliases: dict[str, str] = {}
    tags: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for move in document.log:
        if move.action == "push":
            assert move.what not in versions.keys() | removed.keys(), move
            assert move.after, move
            versions[move.what] = move.after
        elif move.action == "remove":
            removed[move.what] = versions.pop(move.what)
            assert removed[move.what] == move.before, move
        elif move.action == "alias":
            assert aliases.get(move.what) == move.before, move
            assert move.after in versions, move
            aliases[move.what] = move.after
        elif move.action in ("tag", "untag"):
            assert move.after in versions, move
            named = move.what.split(", ")
            remaining = (
                tags[move.after] if move.action == "tag" else [tag for tag in tags[move.after] if tag not in named]
            )
            tags[move.after] = merged_tags(remaining, named if move.action == "tag" else ())
        else:
            assert move.action == "rename", move
    assert versions == {name: entry.digest for name, entry in document.versions.items()}
    assert removed == {name: entry.digest for name, entry in document.removed.items()}
    assert aliases == document.aliases
    assert all(entry.tags == tags[name] for name, entry in document.versions.items())


def require_acknowledged(documents: dict[str, ReferenceDocument], entries: Iterable[Entry]) -> None:
    """Everything that was acknowledged took place once, and nothing did that was refused or that nobody asked for."""
    moves: dict[str, list[Move]] = defaultdict(list)
    for document in {document.name: document for document in documents.values()}.values():
        for move in document.log:
            moves[move.author].append(move)
    entry_of_author = {entry["author"]: entry for entry in entries}
    assert moves.keys() <= entry_of_author.keys()
    for author, entry in entry_of_author.items():
        author_moves = moves.get(author, [])
        if "error" in entry:
            assert entry["error"] in UNSURE or not author_moves, entry
            continue
        if entry["action"] in ("push", "again"):
            document = documents[entry["name"]]
            version = document.versions.get(entry["version"]) or document.removed.get(entry["version"])
            assert version, entry
            assert version.digest == entry["digest"], entry
            assert [move.action for move in author_moves].count("push") == entry["new"], entry
        elif entry["action"] in ("alias", "expect"):
            assert all((move.action, move.what) == ("alias", entry["alias"]) for move in author_moves), entry
            assert all(move.after == entry["version"] for move in author_moves), entry
            assert len(author_moves) == 1 or not author_moves, (entry, author_moves)
            assert all(move.before == entry["expect"] for move in author_moves if "expect" in entry), entry
            assert author_moves or entry.get("expect", entry["version"]) == entry["version"], entry
        elif entry["action"] == "remove":
            assert [(move.action, move.what) for move in author_moves] == [("remove", entry["version"])], entry
        elif entry["action"] in ("collect", "verify"):
            assert not author_moves, entry


def require_no_reported_damage(entries: Iterable[Entry]) -> None:
    """Nobody who looked found damage in a version that had been acknowledged before."""
    pushed = {
        (entry["name"], entry["version"]): entry["end"]
        for entry in entries
        if entry["action"] in ("push", "again") and "error" not in entry
    }
    for entry in entries:
        for place in entry.get("damage", ()):
            acknowledged = pushed.get((entry["name"], place.partition("@")[2]))
            assert acknowledged is None or acknowledged > entry["start"], (place, entry)
