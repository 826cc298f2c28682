"""A bundle carries deltas to the last byte, and nothing else gets in with them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from dataclasses import replace

import pytest

from deltahub.checkpoint import checkpoint
from deltahub.errors import (
    CheckpointError,
    ConfigError,
    ConflictError,
    DeltaHubError,
    IntegrityError,
    NotFoundError,
    ReferenceSyntaxError,
    RemovedError,
    StorageError,
)
from deltahub.files.documents import canonical_json
from deltahub.reference import Reference
from deltahub.registry.bundle import export_bundle, import_bundle
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.edits import remove, set_alias, set_tags
from deltahub.registry.entries import Moving
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.registry.verify import verify
from deltahub.stores.base import object_key
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.faults import FORBIDDEN, FULL, INTERRUPT
from tests.faults.disk import Seen
from tests.s3_servers import QUICK

pytestmark = pytest.mark.slow  # damage at every place of a bundle

parse = Reference.parse


@pytest.fixture(params=["local", "memory", "s3"])
def target(request, tmp_path) -> Registry:
    if request.param == "s3":
        request.getfixturevalue("s3_keys")
        return Registry(BucketStore(request.getfixturevalue("s3").bucket(), QUICK), "target")
    return Registry(LocalStore(tmp_path / "target") if request.param == "local" else MemoryStore(), "target")


@pytest.fixture
def source(new_checkpoint) -> Registry:
    registry = Registry(MemoryStore(), "source")
    for name, value in (("acme/ner", 1), ("acme/ner", 2), ("acme/ner", 3), ("acme/zoo", 1)):
        folder = new_checkpoint(value=value)
        manifest = checkpoint.describe(folder)
        publish(registry, Publication(parse(name), manifest, folder, tags=[f"run={value}"], aliases=["champion"]))
    set_alias(registry, "acme/ner", "prod", "v2")
    return registry


@pytest.fixture
def bundle(source, tmp_path):
    """Two versions of one delta and one of another."""
    export(source, tmp_path / "x.tar", "acme/ner@v2", "acme/ner", "acme/zoo")
    return tmp_path / "x.tar"


def export(registry, path, *names, **options):
    return export_bundle([(registry, parse(name)) for name in names], path, **options)


def content(registry) -> dict[str, bytes]:
    return {key: registry.store.read(key) for prefix in ("objects/", "refs/") for key, _ in registry.store.keys(prefix)}


def intact(registry) -> bool:
    return not any(damage for _, damage in verify(registry))


def test_an_import_restores_version_numbers_tags_and_aliases(source, target, bundle):
    ner, zoo = import_bundle(bundle, target)
    document = target.document("acme/ner")

    assert (ner.name, ner.versions, ner.new, zoo.new) == ("acme/ner", ("v2", "v3"), ("v2", "v3"), ("v1",))
    assert document.versions == {name: source.document("acme/ner").versions[name] for name in ("v2", "v3")}
    assert document.aliases == {"champion": "v3", "prod": "v2"}
    assert intact(target)
    assert [delta.new for delta in import_bundle(bundle, target)] == [(), ()]
    assert target.document("acme/ner") == document


def test_with_its_history_a_delta_arrives_as_it_is(source, target, tmp_path):
    remove(source, "acme/ner", "v1")
    export(source, tmp_path / "x.tar", "acme/ner", history=True)
    import_bundle(tmp_path / "x.tar", target)

    assert target.store.read("refs/acme/ner.json") == source.store.read("refs/acme/ner.json")
    assert intact(target)


def test_a_delta_that_has_no_version_left_is_not_exported(source, tmp_path):
    set_alias(source, "acme/zoo", "champion", None)
    remove(source, "acme/zoo", "v1")
    with pytest.raises(RemovedError):
        export(source, tmp_path / "x.tar", "acme/zoo", history=True)
    assert not (tmp_path / "x.tar").exists()


def test_the_same_deltas_give_the_same_bytes(source, bundle, tmp_path):
    export(source, tmp_path / "y.tar", "acme/zoo", "acme/ner@champion", "acme/ner@prod")
    assert (tmp_path / "y.tar").read_bytes() == bundle.read_bytes()


def test_any_tar_program_can_list_it(bundle):
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
    assert members[0].name.startswith("bundle-")
    assert all(member.isreg() and (member.mtime, member.uid, member.uname) == (0, 0, "") for member in members)
    assert [member.name for member in members[1:]] == sorted(member.name for member in members[1:])


def test_a_repeated_import_keeps_changed_tags_and_names(source, target, bundle):
    import_bundle(bundle, target)
    set_tags(target, "acme/ner", "v3", ["mine"], [])
    rename(target, parse("acme/ner"), parse("acme/nli"))
    import_bundle(bundle, target)

    assert target.document("acme/ner").name == "acme/nli"
    assert target.document("acme/nli").versions["v3"].tags == ("mine", "run=3")


def test_other_content_under_one_number_is_a_conflict_before_anything_is_stored(target, bundle, new_checkpoint):
    for value in (7, 8):
        folder = new_checkpoint(value=value)
        publish(target, Publication(parse("acme/zoo"), checkpoint.describe(folder), folder))
    export(target, bundle.with_name("y.tar"), "acme/zoo@v1")
    other = Registry(MemoryStore(), "other")
    import_bundle(bundle, other)
    before = content(other)
    with pytest.raises(ConflictError, match="acme/zoo@v1:"):
        import_bundle(bundle.with_name("y.tar"), other)
    assert content(other) == before


def test_an_export_of_a_missing_or_damaged_delta_writes_nothing(source, tmp_path):
    path = tmp_path / "x.tar"
    for name in ("acme/nothing", "acme/ner@v9"):
        with pytest.raises(NotFoundError):
            export(source, path, name)
    (entry, *_) = source.resolve(parse("acme/zoo")).manifest.files
    source.store._data[object_key(entry.sha256)] = b"broken"
    with pytest.raises(IntegrityError, match="Repair it"):
        export(source, path, "acme/zoo")
    with pytest.raises(ConfigError, match="Export two bundles"):
        export_bundle([(source, parse("acme/ner")), (Registry(source.store, "b"), parse("acme/ner"))], path)
    assert list(tmp_path.glob("*.tar")) == []


# ----- what does not belong -----


def refused(path, target, error=IntegrityError, match="Nothing was stored") -> str:
    with pytest.raises(error, match=match) as caught:
        import_bundle(path, target)
    assert content(target) == {}
    return str(caught.value)


def test_every_flipped_byte_is_found(bundle):
    target, data = Registry(MemoryStore()), bundle.read_bytes()
    places = {*range(0, len(data), 97), *range(512), len(data) - 1}
    for place in sorted(places):
        bundle.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DeltaHubError):
            import_bundle(bundle, target)
        assert content(target) == {}, place


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 600, -10240, -512, -1])
def test_a_bundle_that_was_cut_off_is_refused(target, bundle, cut):
    bundle.write_bytes(bundle.read_bytes()[:cut])
    refused(bundle, target)


@pytest.mark.parametrize("more", [b"x", b"\0", b"\0" * 10240, b"PK\x03\x04" * 2560])
def test_anything_after_the_end_is_refused(target, bundle, more):
    bundle.write_bytes(bundle.read_bytes() + more)
    refused(bundle, target)


def rebuilt(bundle, change) -> None:
    """Write the archive again with other members: `change` takes and gives a list of (header, data)."""
    with tarfile.open(bundle) as archive:
        members = [(info, archive.extractfile(info).read()) for info in archive.getmembers()]
    with tarfile.open(bundle, "w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in change(members):
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)


def stowaway(name="objects/../../evil", kind=tarfile.REGTYPE, data=b"evil", **facts):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data) if kind == tarfile.REGTYPE else 0, 0o444
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data


@pytest.mark.parametrize(
    "member",
    [
        stowaway(),
        stowaway("/etc/evil"),
        stowaway("evil"),
        stowaway("C:\\evil"),
        stowaway("objects/sha256/aa/bb", tarfile.SYMTYPE, linkname="/etc/passwd"),
        stowaway("objects/sha256/aa/bb", tarfile.LNKTYPE, linkname="../../evil"),
        stowaway("objects", tarfile.DIRTYPE),
        stowaway("device", tarfile.CHRTYPE, devmajor=1, devminor=3),
        stowaway("pipe", tarfile.FIFOTYPE),
        stowaway("x" * 300),
        stowaway("\udcff"),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("at", [0, 1, -1])
def test_a_foreign_file_is_refused_in_every_position(target, bundle, member, at):
    rebuilt(bundle, lambda members: [*members[: at % (len(members) + 1)], member, *members[at % (len(members) + 1) :]])
    refused(bundle, target)


@pytest.mark.parametrize(
    "change",
    [
        lambda members: [*members, members[-1]],
        lambda members: [members[0], members[1], *members[1:]],
        lambda members: [members[0], *members[:0:-1]],
        lambda members: members[1:],
        lambda members: members[:-1],
        lambda members: [members[0], stowaway(members[2][0].name, data=members[1][1]), *members[2:]],
    ],
    ids=["last twice", "first twice", "reversed", "no index", "one missing", "another name"],
)
def test_a_second_a_missing_or_a_misplaced_file_is_refused(target, bundle, change):
    rebuilt(bundle, change)
    refused(bundle, target)


@pytest.mark.parametrize("facts", [{"mode": 0o4755}, {"uid": 1}, {"mtime": 1}, {"uname": "root"}])
def test_headers_say_nothing_of_their_own(target, bundle, facts):
    def change(members):
        for key, value in facts.items():
            setattr(members[1][0], key, value)
        return members

    rebuilt(bundle, change)
    assert "expected the file objects/sha256/" in refused(bundle, target)


def index_of(document):
    """The first member of a bundle with this index."""
    data = canonical_json(document)
    return stowaway(f"bundle-{hashlib.sha256(data).hexdigest()}.json", data=data)


def reindexed(bundle, change) -> None:
    """Write the archive again with a changed index."""

    def changed(members):
        document = json.loads(members[0][1])
        change(document)
        return [index_of(document), *members[1:]]

    rebuilt(bundle, changed)


def test_a_size_that_would_fill_the_disk_is_refused_by_the_size_of_the_file(target, bundle):
    reindexed(bundle, lambda document: document["objects"][0].update(size=10**30))
    assert "bytes, found" in refused(bundle, target)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(deltas=[]),
        lambda document: document.update(more=1),
        lambda document: document.update(objects=document["objects"][:-1]),
        lambda document: document["objects"].append(document["objects"][-1]),
        lambda document: document.update(deltas=document["deltas"][:1]),
        lambda document: document["deltas"][0].update(name="../evil"),
        lambda document: document["deltas"][0].update(name="local:acme/ner"),
        lambda document: document["deltas"][0].update(name="acme/ner@v2"),
        lambda document: document["deltas"][0].update(aliases={"latest": "v2"}),
        lambda document: document["deltas"][0].update(aliases={"x/y": "v2"}),
        lambda document: document["deltas"][0]["versions"]["v2"].update(tags=["../x"]),
        lambda document: document["deltas"][0]["versions"]["v2"].update(digest=f"sha256:{'0' * 64}"),
        lambda document: document["deltas"][0]["versions"]["v2"].update(
            digest=f"sha256:{document['objects'][0]['sha256']}"
        ),
        lambda document: document["deltas"][0].update(versions={}, aliases={}, moved_to="acme/evil"),
    ],
    ids=range(14),
)
def test_an_inconsistent_index_is_refused_before_anything_is_stored(target, bundle, change):
    reindexed(bundle, change)
    refused(bundle, target, DeltaHubError, ".")


def test_a_delta_that_is_about_to_have_another_name_is_refused(target, bundle):
    def change(document):
        delta = ReferenceDocument.from_bytes(canonical_json(document["deltas"][0]))
        moving = Moving("acme/evil", None, "2026-01-01T00:00:00Z", "eve")
        document["deltas"][0] = json.loads(replace(delta, moving=moving).to_bytes())

    reindexed(bundle, change)
    assert "that it is about to be acme/evil" in refused(bundle, target)


def test_an_object_that_no_delta_needs_is_refused(target, source, tmp_path):
    path, data = tmp_path / "x.tar", b"stowaway"
    sha256 = hashlib.sha256(data).hexdigest()
    export(source, path, "acme/zoo")

    def change(members):
        document = json.loads(members[0][1])
        document["objects"] = sorted(
            [*document["objects"], {"sha256": sha256, "size": len(data)}], key=lambda o: o["sha256"]
        )
        rest = sorted([*members[1:], stowaway(object_key(sha256), data=data)], key=lambda member: member[0].name)
        return [index_of(document), *rest]

    rebuilt(path, change)
    assert f"sha256:{sha256}, which belongs to none" in refused(path, target)


def test_a_bundle_of_a_later_release_is_not_called_damaged(target, bundle):
    reindexed(bundle, lambda document: document.update(schema_version=2))
    refused(bundle, target, CheckpointError, "has schema_version 2; this deltahub reads 1. Update deltahub")


def test_a_name_in_other_letters_of_the_same_kind_is_refused(target, bundle, new_checkpoint):
    folder = new_checkpoint(value=9)
    publish(target, Publication(parse("acme/NER"), checkpoint.describe(folder), folder))
    with pytest.raises(ReferenceSyntaxError, match="upper and lower case"):
        import_bundle(bundle, target)
    assert target.names() == ["acme/NER"]


def test_a_path_that_is_not_a_file_is_one_clear_error(target, tmp_path):
    for path in (tmp_path / "nothing.tar", tmp_path):
        with pytest.raises(StorageError, match="Reading the bundle failed"):
            import_bundle(path, target)


# ----- faults -----


def test_an_import_that_is_interrupted_at_any_step_can_be_repeated(tmp_path, source, faults):
    export(source, tmp_path / "x.tar", "acme/zoo")
    target = Registry(LocalStore(tmp_path / "count"))
    steps, seen = faults.count(lambda: import_bundle(tmp_path / "x.tar", target)), Seen()
    for case, step, failure in faults.each(steps, INTERRUPT):  # for errors, see tests/faults/test_steps.py
        target = Registry(LocalStore(tmp_path / case))
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            import_bundle(tmp_path / "x.tar", target)
        if not seen.is_new(target.store.root):
            continue
        assert intact(target), case
        import_bundle(tmp_path / "x.tar", target)
        assert list(target.document("acme/zoo").versions) == ["v1"], case
        assert intact(target), case


@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_an_export_that_fails_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path, source, faults, error):
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "x.tar"
    steps = faults.count(lambda: export(source, path, "acme/zoo"))
    new = path.read_bytes()
    for case, step, failure in faults.each(steps, error):
        path.write_bytes(b"old")
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            export(source, path, "acme/zoo")
        assert path.read_bytes() in (b"old", new), case
        assert list(folder.iterdir()) == [path], case
