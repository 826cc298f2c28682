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

Told = dict[str, Any]
UNSURE = ("StorageError",)  # after these nobody knows whether it was done


def check(registry: Registry, told: Sequence[Told]) -> Counter[str]:
    """Compare a registry that nobody changes any more with what all who changed it were told.

    Returns:
        How often what happened: each action that was acknowledged, and each error.

    Raises:
        AssertionError: something was lost, was never written, or contradicts itself.
    """
    documents = {path: registry.document(path) for path in registry.names()}
    assert not {where: damage for where, damage in verify(registry) if damage}
    for document in documents.values():
        require_replay(document)
    require_told(documents, told)
    require_no_damage_seen(told)
    collect(registry, timedelta())
    collect(registry, timedelta())
    assert {key for key, _ in registry.store.keys("objects/")} == {object_key(sha256) for sha256 in used(registry)}
    assert not {where: damage for where, damage in verify(registry) if damage}
    counts = Counter(f"{entry['action']} {entry['error']}" if "error" in entry else entry["action"] for entry in told)
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
            kept = tags[move.after] if move.action == "tag" else [tag for tag in tags[move.after] if tag not in named]
            tags[move.after] = merged_tags(kept, named if move.action == "tag" else ())
        else:
            assert move.action == "rename", move
    assert versions == {name: entry.digest for name, entry in document.versions.items()}
    assert removed == {name: entry.digest for name, entry in document.removed.items()}
    assert aliases == document.aliases
    assert all(entry.tags == tags[name] for name, entry in document.versions.items())


def require_told(documents: dict[str, ReferenceDocument], told: Iterable[Told]) -> None:
    """Everything that was acknowledged took place once, and nothing did that was refused or that nobody asked for."""
    moves: dict[str, list[Move]] = defaultdict(list)
    for document in {document.name: document for document in documents.values()}.values():
        for move in document.log:
            moves[move.author].append(move)
    asked = {entry["author"]: entry for entry in told}
    assert moves.keys() <= asked.keys()
    for author, entry in asked.items():
        made = moves.get(author, [])
        if "error" in entry:
            assert entry["error"] in UNSURE or not made, entry
            continue
        if entry["action"] in ("push", "again"):
            document = documents[entry["name"]]
            kept = document.versions.get(entry["version"]) or document.removed.get(entry["version"])
            assert kept, entry
            assert kept.digest == entry["digest"], entry
            assert [move.action for move in made].count("push") == entry["new"], entry
        elif entry["action"] in ("alias", "expect"):
            assert all((move.action, move.what) == ("alias", entry["alias"]) for move in made), entry
            assert all(move.after == entry["version"] for move in made), entry
            assert len(made) == 1 or not made, (entry, made)
            assert all(move.before == entry["expect"] for move in made if "expect" in entry), entry
            assert made or entry.get("expect", entry["version"]) == entry["version"], entry
        elif entry["action"] == "remove":
            assert [(move.action, move.what) for move in made] == [("remove", entry["version"])], entry
        elif entry["action"] in ("collect", "verify"):
            assert not made, entry


def require_no_damage_seen(told: Iterable[Told]) -> None:
    """Nobody who looked found damage in a version that had been acknowledged before."""
    pushed = {
        (entry["name"], entry["version"]): entry["end"]
        for entry in told
        if entry["action"] in ("push", "again") and "error" not in entry
    }
    for entry in told:
        for where in entry.get("damage", ()):
            acknowledged = pushed.get((entry["name"], where.partition("@")[2]))
            assert acknowledged is None or acknowledged > entry["start"], (where, entry)
