"""Whatever is done to registries in whatever order, they hold what a simple model of them says."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deltahub.checkpoint import checkpoint
from deltahub.errors import InUseError, NotFoundError
from deltahub.reference import Reference
from deltahub.registry.bundle import export_bundle, import_bundle
from deltahub.registry.edits import remove, set_alias, undo
from deltahub.registry.gc import collect, used
from deltahub.registry.mirror import copy
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.registry.verify import verify
from deltahub.stores.base import object_key
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import save_checkpoint

NAMES = ("acme/a", "acme/b")
aliases = st.sampled_from(["champion", "prod"])
names = st.sampled_from(NAMES)


class Histories(RuleBasedStateMachine):
    """One registry, and what it should hold: versions and their content, aliases and how they got there."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        self.contents = [save_checkpoint(root / str(value), value=value) for value in range(3)]
        self.manifests = [checkpoint.describe(folder) for folder in self.contents]
        self.file = root / "x.tar"
        self.registry = Registry(MemoryStore())
        self.versions: dict[str, dict[str, str]] = {name: {} for name in NAMES}  # to a digest; None once removed
        self.aliases: dict[str, dict[str, str]] = {name: {} for name in NAMES}
        self.moves: dict[str, list[dict[str, str]]] = {name: [] for name in NAMES}

    def teardown(self):
        self.folder.cleanup()

    def left(self, name):
        return {version: digest for version, digest in self.versions[name].items() if digest}

    @rule(name=names, content=st.integers(0, 2), alias=st.none() | aliases)
    def push(self, name, content, alias):
        manifest, known = self.manifests[content], self.left(name)
        reference = Reference.parse(name)
        given = [alias] if alias else []
        published = publish(self.registry, Publication(reference, manifest, self.contents[content], aliases=given))
        version, new = published.version, published.new
        assert new == (manifest.digest not in known.values())
        if new:
            assert version == f"v{len(self.versions[name]) + 1}"
            self.versions[name][version] = manifest.digest
        if alias and self.aliases[name].get(alias) != version:
            self.moves[name].append(dict(self.aliases[name]))
            self.aliases[name][alias] = version

    @precondition(lambda self: any(self.left(name) for name in NAMES))
    @rule(data=st.data(), alias=aliases)
    def move_an_alias(self, data, alias):
        name = data.draw(st.sampled_from([name for name in NAMES if self.left(name)]))
        version = data.draw(st.sampled_from(sorted(self.left(name))))
        set_alias(self.registry, name, alias, version)
        if self.aliases[name].get(alias) != version:
            self.moves[name].append(dict(self.aliases[name]))
            self.aliases[name][alias] = version

    @rule(name=names)
    def undo(self, name):
        try:
            undo(self.registry, name)
        except NotFoundError:  # nothing to undo, or what it would go back to is gone
            before = self.moves[name][-1] if self.moves[name] else None
            assert before is None or not set(before.values()) <= self.left(name).keys()
            return
        self.aliases[name] = self.moves[name].pop()

    @precondition(lambda self: any(self.left(name) for name in NAMES))
    @rule(data=st.data())
    def remove(self, data):
        name = data.draw(st.sampled_from([name for name in NAMES if self.left(name)]))
        version = data.draw(st.sampled_from(sorted(self.left(name))))
        try:
            remove(self.registry, name, version)
        except InUseError:
            assert version in self.aliases[name].values()
            return
        assert version not in self.aliases[name].values()
        self.versions[name][version] = None

    @precondition(lambda self: any(self.versions[name] for name in NAMES))
    @rule(data=st.data())
    def rename_and_back(self, data):
        name = data.draw(st.sampled_from([name for name in NAMES if self.versions[name]]))
        other = Reference.parse(f"acme/other-{name[-1]}")
        rename(self.registry, Reference.parse(name), other)
        rename(self.registry, other, Reference.parse(name))

    @rule(days=st.sampled_from([0, 14]))
    def collect(self, days):
        collect(self.registry, timedelta(days=days))
        if not days:
            held = {key for key, _ in self.registry.store.keys("objects/")}
            assert held == {object_key(sha256) for sha256 in used(self.registry)}

    @rule()
    def go_on_in_a_mirror(self):
        target = Registry(MemoryStore())
        list(copy(self.registry, target))
        self.registry = target

    @precondition(lambda self: all(self.left(name) for name in NAMES))
    @rule()
    def go_on_in_what_a_bundle_brought(self):
        export_bundle([(self.registry, Reference.parse(name)) for name in NAMES], self.file, history=True)
        self.registry = Registry(MemoryStore())
        import_bundle(self.file, self.registry)

    @invariant()
    def it_matches_the_model(self):
        for name in NAMES:
            if self.versions[name]:
                document = self.registry.document(name)
                assert {key: entry.digest for key, entry in document.versions.items()} == self.left(name)
                assert set(document.removed) == self.versions[name].keys() - self.left(name).keys()
                assert document.aliases == self.aliases[name]

    @invariant()
    def all_is_whole(self):
        assert not any(damage for _, damage in verify(self.registry))


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
