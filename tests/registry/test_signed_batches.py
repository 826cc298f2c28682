"""Many deltas that are pushed by one call are signed as one is: each before anybody can see it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from deltahub.cache.cache import Cache
from deltahub.checkpoint.checkpoint import describe
from deltahub.errors import ConfigError, ConflictError, IntegrityError, SignatureError, StorageError
from deltahub.files import durable
from deltahub.hub.hub import Hub
from deltahub.reference import Digest
from deltahub.registry.gc import collect
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.signatures import add_signature, add_signatures, signatures
from deltahub.signing import PrivateKey, check
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.faults.disk import write_tree
from tests.keys import new_key

pytestmark = pytest.mark.slow  # an error at every step


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> PrivateKey:
    return PrivateKey(new_key(tmp_path_factory.mktemp("keys") / "release.pem"))


@pytest.fixture
def folders(new_checkpoint):
    return [new_checkpoint(value=number / 4) for number in range(3)]


def hub_of(registry, tmp_path, *trust, cache="cache"):
    """A hub over a registry that asks for a signature by one of some keys."""
    return Hub({registry.name: registry}, Cache(tmp_path / cache), trust={registry.name: [k.public.pem for k in trust]})


def unsigned(registry) -> list[str]:
    """What can be seen in a registry and nobody signed."""
    found = []
    for path in registry.names():
        for name, version in registry.document(path).versions.items():
            if not signatures(registry, version.digest):
                found.append(f"{path}@{name}")
    return found


def test_each_of_many_is_signed_before_anybody_can_see_it(anywhere, tmp_path, key, folders, monkeypatch):
    seen, swap_all = [], anywhere.store.swap_all

    def watched(swaps):
        if any(swap.key.startswith(REFS) for swap in swaps):
            seen.extend(list(signatures(anywhere, describe(folder).digest)) for folder in folders)
        return swap_all(swaps)

    monkeypatch.setattr(anywhere.store, "swap_all", watched)
    hub_of(anywhere, tmp_path).push_many(folders, "acme", sign=key)

    assert seen == [[key.public.id]] * 3
    assert len(anywhere.names()) == 3


def test_a_registry_that_asks_for_signatures_gives_out_a_batch_that_is_signed(anywhere, tmp_path, key, folders):
    hub = hub_of(anywhere, tmp_path, key)
    pushed = hub.push_many(folders, "acme", sign=key)

    assert [it.digest for it in hub.pull_all([it.reference for it in pushed])] == [it.digest for it in pushed]
    for it, folder in zip(pushed, folders, strict=True):
        check(describe(folder).to_bytes(), signatures(anywhere, it.digest)[key.public.id], key.public)


def test_of_a_batch_that_is_not_signed_each_is_refused_by_a_sentence_of_its_own(anywhere, tmp_path, key, folders):
    hub = hub_of(anywhere, tmp_path, key)
    names = [it.reference for it in hub.push_many(folders, "acme")]
    hub.push(folders[1], names[1].path, sign=key)
    first, signed, last = hub.pull_all(names)

    for name, refused in ((names[0], first), (names[2], last)):
        assert isinstance(refused, SignatureError)
        assert str(refused).startswith(f"{name} is refused: expected a signature by {key.public.id[:16]}")
    assert signed.digest == describe(folders[1]).digest


def test_one_that_cannot_be_pushed_keeps_none_of_the_others_from_being_signed(anywhere, tmp_path, key, folders):
    (folders[1] / "delta.safetensors").write_bytes(b"x")
    first, bad, last = hub_of(anywhere, tmp_path).push_many(folders, "acme", sign=key)

    assert isinstance(bad, IntegrityError)
    assert [list(signatures(anywhere, it.digest)) for it in (first, last)] == [[key.public.id]] * 2
    assert unsigned(anywhere) == []


def test_one_whose_signature_cannot_be_stored_is_not_published_and_the_others_are(
    anywhere, tmp_path, key, folders, monkeypatch
):
    swap_all, lost = anywhere.store.swap_all, describe(folders[1]).digest[7:]

    def failing(swaps):
        full = StorageError("The disk is full. Make room.")
        return [full if lost in swap.key else swap_all([swap])[0] for swap in swaps]

    monkeypatch.setattr(anywhere.store, "swap_all", failing)
    first, failed, last = hub_of(anywhere, tmp_path).push_many(folders, "acme", sign=key)

    assert str(failed) == "The disk is full. Make room."
    assert anywhere.names() == sorted(it.reference.path for it in (first, last))
    assert unsigned(anywhere) == []


def test_folders_with_the_same_content_are_signed_under_each_name(anywhere, tmp_path, key, new_checkpoint, monkeypatch):
    made, sign = [], key.sign
    monkeypatch.setattr(key, "sign", lambda manifest, version: made.append(version) or sign(manifest, version))
    done = hub_of(anywhere, tmp_path).push_many([new_checkpoint(), new_checkpoint()], "acme", sign=key)

    assert made == [f"{it.reference.path}@v1" for it in done]
    assert len({it.reference.path for it in done}) == 2
    assert unsigned(anywhere) == []


def test_a_batch_that_is_signed_again_has_one_signature_by_each_key(anywhere, tmp_path, key, folders):
    other = PrivateKey(new_key(tmp_path / "other.pem"))
    hub = hub_of(anywhere, tmp_path)
    hub.push_many(folders[:2], "acme", sign=key)
    hub.push_many(folders, "acme", sign=other)
    done = hub.push_many(folders, "acme", sign=key)

    assert [it.new for it in done] == [False] * 3
    for folder in folders:
        held = signatures(anywhere, describe(folder).digest)
        assert held.keys() == {key.public.id, other.public.id}
        check(describe(folder).to_bytes(), held[key.public.id], key.public)


def test_two_concurrent_batches_signed_with_one_key_both_succeed(key, monkeypatch):
    registry, digests = Registry(MemoryStore(), "team"), [Digest.of_hex(f"{number:064x}") for number in range(3)]
    swap_all = registry.store.swap_all

    def beaten(swaps):
        add_signature(registry, digests[1], key.public.id, b"theirs")
        return swap_all(swaps)

    monkeypatch.setattr(registry.store, "swap_all", beaten)
    failed = add_signatures(registry, key.public.id, dict.fromkeys(digests, b"mine"))

    assert failed == {}
    assert [signatures(registry, digest) for digest in digests] == [{key.public.id: b"mine"}] * 3


def test_a_signature_that_loses_every_race_fails_only_its_delta(key, monkeypatch):
    registry, digests = Registry(MemoryStore(), "team"), [Digest.of_hex(f"{number:064x}") for number in range(2)]
    swap = registry.store.swap

    def losing(path, data, expected):
        if digests[0][7:] in path:
            raise ConflictError(path, expected, "another")
        return swap(path, data, expected)

    monkeypatch.setattr(registry.store, "swap", losing)
    failed = add_signatures(registry, key.public.id, dict.fromkeys(digests, b"mine"))

    assert {digest: type(error) for digest, error in failed.items()} == {digests[0]: ConflictError}
    assert signatures(registry, digests[1]) == {key.public.id: b"mine"}


def test_a_source_that_holds_no_signatures_is_refused_before_a_folder_is_looked_at(tmp_path, key, registry):
    class Single:
        """A source that is no registry."""

        name, remote = "single", False
        place = "single (https://hub.example)"

    hub = Hub({"single": Single(), "local": registry}, Cache(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=r"single \(https://hub\.example\) is not a registry"):
        hub.push_many([tmp_path / "not there"], "acme", sign=key)


def test_a_collection_keeps_the_signatures_of_a_batch(anywhere, tmp_path, key, folders):
    hub_of(anywhere, tmp_path).push_many(folders, "acme", sign=key)
    collect(anywhere, timedelta(0))
    collect(anywhere, timedelta(0))

    assert len(anywhere.names()) == 3
    assert unsigned(anywhere) == []


def test_many_that_are_killed_at_any_step_are_signed_wherever_they_can_be_seen(
    tmp_path, key, folders, faults, monkeypatch
):
    monkeypatch.setattr(durable, "MANY", 2)
    monkeypatch.setattr("deltahub.stores.local_files.SILENT", 0.0)
    signature = {describe(folder).to_bytes(): key.sign(describe(folder).to_bytes()) for folder in folders[:2]}
    monkeypatch.setattr(
        key, "sign", lambda manifest, _: signature[manifest]
    )  # its own steps are no steps of the registry

    def push(case):
        hub_of(Registry(LocalStore(tmp_path / case)), tmp_path).push_many(folders[:2], "acme", sign=key)

    published = set()
    for step, tree in faults.killed(tmp_path / "whole", lambda: push("whole")):
        write_tree(tree, tmp_path / f"{step}")
        registry = Registry(LocalStore(tmp_path / f"{step}"))
        assert unsigned(registry) == [], step
        published.add(len(registry.names()))
    assert {0, 1, 2} <= published
