"""All that changes a registry, each on a small registry that is always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import DeltaHubError
from deltahub.files import durable
from deltahub.reference import Reference
from deltahub.registry import name_table
from deltahub.registry.amend import Amendment, amend
from deltahub.registry.bundle import export_bundle, import_bundle
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.edits import remove, set_alias, set_tags, undo
from deltahub.registry.gc import collect
from deltahub.registry.mirror import copy
from deltahub.registry.promotion.policy import Policy, write_policy
from deltahub.registry.promotion.requests import ask
from deltahub.registry.publish import Publication, publish, publish_many
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.registry.verify import verify
from deltahub.stores.base import Store
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import save_checkpoint

NER, NLI = Reference.parse("acme/ner"), Reference.parse("acme/nli")
State = dict[str, ReferenceDocument]


@dataclass(frozen=True)
class World:
    """What the actions need beside the registry that they change.

    Attributes:
        folders: checkpoints, and their manifests. The registry has the first two as versions, and had the third.
        other: a registry with all of them, and one more.
        file: a bundle of the newest version there.
    """

    folders: list[Path]
    manifests: list[Manifest]
    other: Registry
    file: Path

    @classmethod
    def build(cls, root: Path) -> World:
        """Make it in an empty folder."""
        folders = [save_checkpoint(root / str(number), value=number / 4) for number in range(4)]
        manifests = [checkpoint.describe(folder) for folder in folders]
        world = cls(folders, manifests, Registry(MemoryStore(), "other"), root / "x.tar")
        for number in range(4):
            world.push(world.other, number, aliases=[] if number else ["champion"])
        export_bundle([(world.other, NER)], world.file)
        return world

    def push(self, registry: Registry, number: int, **options: list[str]) -> None:
        """Publish one of the checkpoints."""
        publish(registry, Publication(NER, self.manifests[number], self.folders[number], **options))

    def fill(self, store: Store) -> Registry:
        """A registry with two versions, of which the first is the champion, and a third one that was removed."""
        registry = Registry(store)
        for number in range(3):
            self.push(registry, number, aliases=[] if number else ["champion"])
        remove(registry, "acme/ner", "v3")
        return registry


def push_many(registry: Registry, world: World, many: int) -> None:
    """Publish a version of one delta and a new delta in one call; from `many` files on one sync is for all."""
    added = Publication(NER, world.manifests[3], world.folders[3], aliases=["prod"])
    fresh = Publication(NLI, world.manifests[1], world.folders[1])
    with patch.object(durable, "MANY", many):
        for result in publish_many(registry, [added, fresh]):
            if isinstance(result, DeltaHubError):
                raise result


def ask_for_a_move(registry: Registry) -> None:
    """Protect an alias by rules, and ask for its move."""
    rules = Policy.parse({"rules": [{"deltas": "*", "aliases": ["champion"], "approvals": 1}]})
    write_policy(registry.store, rules, registry.actor)
    ask(registry, "acme/ner", "champion", "v2", "better")


def push_into_a_large_namespace(registry: Registry, world: World) -> None:
    """Publish a new delta into a namespace that has a table of its names."""
    with patch.object(name_table, "LARGE", 0):
        publish(registry, Publication(NLI, world.manifests[1], world.folders[1]))


ACTIONS: dict[str, Callable[[Registry, World], object]] = {
    "push": lambda registry, world: world.push(registry, 3, aliases=["prod"], tags=["task=ner"]),
    "push again": lambda registry, world: world.push(registry, 1, tags=["task=ner"]),
    "push into a large namespace": push_into_a_large_namespace,
    "push many": lambda registry, world: push_many(registry, world, 1000),
    "push many, one sync": lambda registry, world: push_many(registry, world, 1),
    "alias": lambda registry, world: set_alias(registry, "acme/ner", "prod", "v2"),
    "tag": lambda registry, world: set_tags(registry, "acme/ner", "v1", ["task=ner"], []),
    "amend": lambda registry, world: amend(
        registry, "acme/ner", "v1", Amendment("3 epochs", {"accuracy": 0.93}, "on SST-2", "# Better")
    ),
    "ask": lambda registry, world: ask_for_a_move(registry),
    "undo": lambda registry, world: undo(registry, "acme/ner"),
    "rm": lambda registry, world: remove(registry, "acme/ner", "v2"),
    "rename": lambda registry, world: rename(registry, NER, NLI),
    "gc": lambda registry, world: collect(registry, timedelta()),
    "copy": lambda registry, world: list(copy(world.other, registry)),
    "import": lambda registry, world: import_bundle(world.file, registry),
}


def between(action: str, before: State, after: State) -> list[State]:
    """What an action may leave when it is interrupted."""
    if action == "rename":  # the new document is written first
        return [before, {**before, "acme/nli": after["acme/nli"]}, after]
    if action.startswith("push many"):  # in any order
        return [before, *({**before, name: after[name]} for name in ("acme/ner", "acme/nli")), after]
    return [before, after]


def state_of(registry: Registry) -> State:
    """Every document as it is stored."""
    documents = {path: registry.stored(path) for path in registry.names()}
    return {path: document for path, document in documents.items() if document is not None}


def damage_of(registry: Registry) -> dict[str, str]:
    """What `verify` finds."""
    return {place: damage for place, damage in verify(registry) if damage}
