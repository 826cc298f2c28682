"""Damage is found, named, and repaired by pushing again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.manifest import FileEntry
from deltahub.errors import IntegrityError, NotFoundError
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.registry.verify import verify
from deltahub.stores.base import object_key
from deltahub.stores.local import LocalStore

NER = Reference.parse("acme/ner")


def push(registry, folder, reference=NER):
    published = publish(registry, Publication(reference, checkpoint.describe(folder), folder))
    return published.version, published.new


def write(registry, sha256, data):
    path = registry.store.root / object_key(sha256)
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.fixture
def pushed(registry, checkpoint_folder) -> Registry:
    push(registry, checkpoint_folder)
    return registry


def objects(registry) -> dict[str, str]:
    """The digests of all objects of the delta, by what they are."""
    found = registry.resolve(NER)
    digests = {entry.path: entry.sha256 for entry in found.manifest.files}
    return {**digests, "manifest": found.entry.digest.removeprefix("sha256:")}


def test_a_whole_registry_is_clean(pushed, new_checkpoint):
    push(pushed, new_checkpoint(value=0.25))
    push(pushed, new_checkpoint(), Reference.parse("acme/zoo"))

    assert list(verify(pushed)) == [("acme/ner@v1", None), ("acme/ner@v2", None), ("acme/zoo@v1", None)]
    assert list(verify(pushed, ["acme/ner"])) == [("acme/ner@v1", None), ("acme/ner@v2", None)]
    assert list(verify(pushed, ["acme/ner"], "latest")) == [("acme/ner@v2", None)]


def test_shared_objects_are_read_once_and_damage_is_reported_for_each_delta(pushed, checkpoint_folder, monkeypatch):
    push(pushed, checkpoint_folder, Reference.parse("acme/zoo"))
    weights = objects(pushed)[checkpoint.WEIGHTS]
    reads, chunks = [], LocalStore.chunks
    monkeypatch.setattr(LocalStore, "chunks", lambda store, key: (reads.append(key), chunks(store, key))[1])

    assert [damage for _, damage in verify(pushed)] == [None, None]
    assert reads.count(object_key(weights)) == 1
    write(pushed, weights, b"x")
    assert all("is damaged" in damage for _, damage in verify(pushed))


def test_all_that_is_damaged_is_reported(pushed):
    write(pushed, objects(pushed)[checkpoint.WEIGHTS], b"x")
    (pushed.store.root / object_key(objects(pushed)[checkpoint.CARD])).unlink()
    ((_, damage),) = verify(pushed)

    assert "delta.safetensors is damaged: expected sha256:" in damage
    assert "README.md is damaged: expected sha256:" in damage
    assert damage.count("is damaged") == 2
    assert damage.count("found nothing") == 1


def test_an_old_name_is_not_verified_twice(pushed):
    rename(pushed, NER, Reference.parse("acme/nli"))
    assert list(verify(pushed)) == [("acme/nli@v1", None)]
    assert list(verify(pushed, ["acme/ner"])) == [("acme/nli@v1", None)]


def test_verifying_a_missing_delta_is_an_error(pushed):
    with pytest.raises(NotFoundError, match="acme/nix was not found"):
        list(verify(pushed, ["acme/nix"]))
    with pytest.raises(NotFoundError, match="acme/ner@v7 was not found"):
        list(verify(pushed, ["acme/ner"], "v7"))


@pytest.mark.parametrize("name", ["README.md", "backbone.json", "delta.safetensors", "delta_config.json", "manifest"])
def test_every_flipped_byte_and_every_loss_is_found_and_pushing_again_repairs_it(pushed, checkpoint_folder, name):
    sha256 = objects(pushed)[name]
    path = pushed.store.root / object_key(sha256)
    whole = path.read_bytes()
    damaged = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(0, len(whole), 7)]
    for data in [*damaged, b"", whole[:-1], whole + b"\0"]:
        write(pushed, sha256, data)
        ((where, damage),) = verify(pushed)
        assert where == "acme/ner@v1"
        assert "damaged: expected sha256:" in damage
        assert name == "manifest" or name in damage
    path.unlink()
    ((_, damage),) = verify(pushed)
    assert sha256[2:] in damage

    assert push(pushed, checkpoint_folder) == ("v1", False)
    assert list(verify(pushed)) == [("acme/ner@v1", None)]
    assert path.read_bytes() == whole


def test_a_damaged_file_is_not_handed_out_and_nothing_is_left(pushed, tmp_path):
    sha256 = objects(pushed)["README.md"]
    entry = FileEntry("README.md", sha256, 10)
    write(pushed, sha256, b"# Evil\n")
    with pytest.raises(IntegrityError, match="Push the delta again from an intact copy"):
        pushed.fetch(entry, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()

    (pushed.store.root / object_key(sha256)).unlink()
    with pytest.raises(IntegrityError, match=rf"expected sha256:{sha256}, found nothing\. Push the delta again"):
        pushed.fetch(entry, tmp_path / "copy")


def test_a_damaged_manifest_is_not_read(pushed):
    write(pushed, objects(pushed)["manifest"], b"{}")
    with pytest.raises(IntegrityError, match=r"A manifest is damaged: .*Run `deltahub verify`"):
        pushed.resolve(NER)


def test_a_damaged_document_is_named_and_does_not_hide_the_others(pushed, checkpoint_folder):
    push(pushed, checkpoint_folder, Reference.parse("acme/zoo"))
    (pushed.store.root / "refs/acme/ner.json").write_bytes(b'{"name": "acme/ner"')
    (where, damage), other = verify(pushed)

    assert where == "acme/ner"
    assert "The reference document of acme/" in damage
    assert "is damaged" in damage
    assert other == ("acme/zoo@v1", None)
    with pytest.raises(IntegrityError, match=r"The reference document of acme/\w+ is damaged"):
        push(pushed, checkpoint_folder)


KILLED = """
import os, sys
from pathlib import Path
from deltahub.checkpoint import checkpoint
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.stores.local import LocalStore
folder, left, replace = Path(sys.argv[2]), int(sys.argv[3]), os.replace
def killed(*names):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    replace(*names)
os.replace = killed
publish(Registry(LocalStore(Path(sys.argv[1]))), Publication(Reference.parse("acme/ner"), checkpoint.describe(folder), folder))
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("step", [1, 5, 6])
def test_a_push_that_is_killed_leaves_nothing_to_mistake_for_a_delta(tmp_path, checkpoint_folder, step):
    root = tmp_path / "registry"
    command = [sys.executable, "-c", KILLED, str(root), str(checkpoint_folder), str(step)]
    assert subprocess.run(command, check=False).returncode == -9

    registry = Registry(LocalStore(root))
    assert (registry.names(), list(verify(registry))) == ([], [])
    assert push(registry, checkpoint_folder) == ("v1", True)
    assert list(verify(registry)) == [("acme/ner@v1", None)]
