"""A signature says that the holder of a key vouches for a delta; who asks for one is never given less."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from deltahub.cache import maintenance
from deltahub.cache.cache import Cache
from deltahub.checkpoint.checkpoint import describe
from deltahub.errors import ConfigError, ConflictError, IntegrityError, SignatureError
from deltahub.hub.hub import Hub
from deltahub.hub.lockfile import Lock
from deltahub.reference import Digest, Reference
from deltahub.registry.bundle import export_bundle, import_bundle
from deltahub.registry.edits import remove
from deltahub.registry.gc import collect
from deltahub.registry.mirror import copy
from deltahub.registry.publish import publish
from deltahub.registry.registry import Registry
from deltahub.registry.signatures import PREFIX, add_signature, copy_signatures, signatures
from deltahub.signing import MOST, PASSWORD, PrivateKey, PublicKey, check, trusted_signer
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.keys import new_key, public_of
from tests.s3_servers import QUICK

REF = Reference.parse("acme/ner")


@pytest.fixture
def key(tmp_path) -> PrivateKey:
    return PrivateKey(new_key(tmp_path / "release.pem"))


@pytest.fixture
def other(tmp_path) -> PrivateKey:
    return PrivateKey(new_key(tmp_path / "other.pem"))


@pytest.fixture
def manifest(checkpoint_folder):
    return describe(checkpoint_folder).to_bytes()


@pytest.fixture
def team(tmp_path):
    """A registry of a team, in a folder."""
    return Registry(LocalStore(tmp_path / "team"), "team")


def hub_of(registry, tmp_path, *trust, cache="cache"):
    """A hub over a registry that asks for a signature by one of some keys."""
    return Hub({registry.name: registry}, Cache(tmp_path / cache), trust={registry.name: [k.public.pem for k in trust]})


# ----- one signature -----


def test_a_signature_holds_for_its_delta_and_its_key_and_for_no_other(key, other, manifest):
    signature = key.sign(manifest)
    check(manifest, signature, key.public)

    with pytest.raises(IntegrityError, match="expected one by the key"):
        check(manifest, signature, other.public)
    with pytest.raises(IntegrityError):
        check(manifest.replace(b"lora", b"Lora"), signature, key.public)


def test_a_signature_is_small_whatever_it_is_over(key, manifest):
    assert len(key.sign(manifest)) < 4096
    assert len(key.sign(manifest + b" " * 10**6)) < 4096


def test_a_signature_that_was_changed_anywhere_that_counts_does_not_hold(key, other, manifest):
    document = json.loads(key.sign(manifest))
    stranger = json.loads(other.sign(manifest))
    envelope = document["dsseEnvelope"]

    def changed(**parts):
        return json.dumps({**document, "dsseEnvelope": {**envelope, **parts}}).encode()

    for forged in (
        changed(signatures=stranger["dsseEnvelope"]["signatures"]),
        changed(signatures=[]),
        changed(payload=json.loads(key.sign(manifest + b" "))["dsseEnvelope"]["payload"]),
        changed(payloadType="text/plain"),
        b"",
        b"{}",
        b"[]",
        b"\xff" * 100,
        b'{"dsseEnvelope": 3}',
        b"[" * 10_000,
        b" " * (MOST + 1),
    ):
        with pytest.raises(IntegrityError):
            check(manifest, forged, key.public)


def test_a_signature_filed_under_another_key_counts_for_neither(key, other, manifest):
    signature = other.sign(manifest)
    trusted = {key.public.id: key.public}

    assert trusted_signer(manifest, {key.public.id: signature}, trusted) is None
    assert trusted_signer(manifest, {other.public.id: signature}, trusted) is None
    assert trusted_signer(manifest, {key.public.id: key.sign(manifest)}, trusted) == key.public.id


def test_an_encrypted_key_needs_its_password(tmp_path, monkeypatch, manifest):
    path = new_key(tmp_path / "secret.pem", "s3cret")
    with pytest.raises(ConfigError, match=rf"is encrypted\. Put its password into the environment variable {PASSWORD}"):
        PrivateKey(path)
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(ConfigError, match="can be read with the password given") as caught:
        PrivateKey(path)
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv(PASSWORD, "s3cret")
    signing = PrivateKey(path)
    check(manifest, signing.sign(manifest), signing.public)


def test_a_password_for_another_key_is_no_hindrance(tmp_path, monkeypatch, manifest):
    monkeypatch.setenv(PASSWORD, "s3cret")
    signing = PrivateKey(new_key(tmp_path / "plain.pem"))

    check(manifest, signing.sign(manifest), signing.public)


def test_a_key_of_the_wrong_type_is_refused(tmp_path):
    path = new_key(tmp_path / "key.pem")
    big = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(big.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "rsa.pub").write_bytes(big.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "text").write_text("hello")

    for wrong, clause in (
        (public_of(path), "holds a public key"),
        ("rsa.pem", "expected an elliptic key"),
        ("text", "no private key"),
    ):
        with pytest.raises(ConfigError, match=clause):
            PrivateKey(tmp_path / wrong)
    for wrong, clause in (
        (path, "holds a private key"),
        ("rsa.pub", "expected an elliptic key"),
        ("text", "no public key"),
    ):
        with pytest.raises(ConfigError, match=clause):
            PublicKey.read(tmp_path / wrong)


def test_a_private_key_gives_its_public_one(key, tmp_path):
    assert PublicKey.read(public_of(tmp_path / "release.pem")) == key.public
    assert len(key.public.id) == 64


# ----- policy -----


def test_a_signed_delta_is_pulled_from_a_registry_that_asks_for_it(team, tmp_path, key, checkpoint_folder):
    hub = hub_of(team, tmp_path, key)
    pushed = hub.push(checkpoint_folder, "acme/ner", sign=key)

    assert hub.pull(REF).digest == pushed.digest
    assert list(signatures(team, pushed.digest)) == [key.public.id]


def test_an_unsigned_delta_is_refused_and_not_downloaded(team, tmp_path, key, checkpoint_folder):
    hub = hub_of(team, tmp_path, key)
    hub.push(checkpoint_folder, "acme/ner")
    with pytest.raises(SignatureError) as caught:
        hub.pull(REF)

    assert str(caught.value) == (
        f"team:acme/ner@v1 is refused: expected a signature by {key.public.id[:16]}, and it is not signed. "
        "Ask the owner of such a key to check and sign it: deltahub sign REF --key KEY"
    )
    assert list(maintenance.entries(hub.cache)) == []


def test_a_signature_by_another_key_is_not_enough(team, tmp_path, key, other, checkpoint_folder):
    hub = hub_of(team, tmp_path, key)
    hub.push(checkpoint_folder, "acme/ner", sign=other)

    with pytest.raises(SignatureError, match=f"it is signed by {other.public.id[:16]}, which is not trusted"):
        hub.pull(REF)
    assert hub_of(team, tmp_path, key, other).pull(REF).digest


def test_a_tampered_signature_is_refused(team, tmp_path, key, checkpoint_folder, new_checkpoint):
    hub = hub_of(team, tmp_path, key)
    pushed = hub.push(checkpoint_folder, "acme/ner")
    stolen = key.sign(describe(new_checkpoint(value=0.25)).to_bytes())
    add_signature(team, pushed.digest, key.public.id, stolen)

    with pytest.raises(SignatureError, match=f"by the key {key.public.id[:16]} does not match this delta"):
        hub.pull(REF)


def test_a_key_that_is_no_longer_trusted_no_longer_counts_even_for_what_is_cached(
    team, tmp_path, key, other, checkpoint_folder
):
    hub_of(team, tmp_path, key, other).push(checkpoint_folder, "acme/ner", sign=key)
    assert hub_of(team, tmp_path, key, other).pull(REF)

    with pytest.raises(SignatureError, match="is not trusted"):
        hub_of(team, tmp_path, other).pull(REF)


def test_verified_signatures_can_be_verified_again_offline(team, tmp_path, key, checkpoint_folder):
    hub = hub_of(team, tmp_path, key)
    hub.push(checkpoint_folder, "acme/ner", sign=key)
    hub.pull(REF)
    for path in (tmp_path / "team" / PREFIX).rglob("*.json"):
        path.unlink()

    assert hub.pull(REF)
    with pytest.raises(SignatureError, match="it is not signed"):
        hub_of(team, tmp_path, key, cache="fresh").pull(REF)


def test_cached_signatures_are_verified_again(team, tmp_path, key, other, checkpoint_folder):
    hub = hub_of(team, tmp_path, key)
    pushed = hub.push(checkpoint_folder, "acme/ner")
    kept = tmp_path / "cache" / PREFIX / pushed.digest[7:] / f"{key.public.id}.json"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(other.sign(describe(checkpoint_folder).to_bytes()))

    with pytest.raises(SignatureError):
        hub.pull(REF)


def test_a_lock_file_is_no_way_around_the_policy(team, tmp_path, key, checkpoint_folder, monkeypatch):
    free, strict = hub_of(team, tmp_path), hub_of(team, tmp_path, key)
    free.push(checkpoint_folder, "acme/ner")
    lock = Lock(tmp_path / "deltahub.lock", {"acme/ner": free.pin(REF)})
    lock.write()
    free.pull(REF)

    with pytest.raises(SignatureError):
        strict.sync(lock)
    monkeypatch.setenv("DELTAHUB_LOCK", str(lock.path))
    with pytest.raises(SignatureError):
        strict.pull(REF)


def test_unsigned_deltas_are_not_locked_where_signatures_are_required(team, tmp_path, key, checkpoint_folder):
    hub = hub_of(team, tmp_path, key)
    pushed = hub.push(checkpoint_folder, "acme/ner")
    with pytest.raises(SignatureError, match="it is not signed"):
        hub.pin(REF)
    add_signature(team, pushed.digest, key.public.id, key.sign(describe(checkpoint_folder).to_bytes()))

    assert hub.pin(REF).digest == pushed.digest


def test_a_caller_can_ask_for_a_signature_where_the_registry_does_not(team, tmp_path, key, other, checkpoint_folder):
    hub = hub_of(team, tmp_path)
    hub.push(checkpoint_folder, "acme/ner", sign=key)

    assert hub.pull(REF, trust=[key.public.pem])
    with pytest.raises(SignatureError):
        hub.pull(REF, trust=[other.public.pem])
    with pytest.raises(SignatureError):
        hub_of(team, tmp_path, other).pull(REF, trust=[key.public.pem])


# ----- signatures travel -----


def test_a_signature_counts_under_its_name_and_version_only(team, tmp_path, key, checkpoint_folder):
    hub = hub_of(team, tmp_path, key)
    pushed = hub.push(checkpoint_folder, "acme/ner", sign=key)
    hub.push(checkpoint_folder, "acme/other")
    with pytest.raises(SignatureError, match="its content is signed as acme/ner@v1 and under no other name"):
        hub.pull(Reference.parse("acme/other"))
    hub.push(checkpoint_folder, "acme/other", sign=key)

    assert hub.pull(Reference.parse("acme/other")).digest == hub.pull(REF).digest == pushed.digest
    assert list(signatures(team, pushed.digest)) == [key.public.id]


def test_a_signature_of_an_earlier_release_counts_with_a_warning(team, tmp_path, key, checkpoint_folder, caplog):
    hub = hub_of(team, tmp_path, key)
    pushed = hub.push(checkpoint_folder, "acme/ner")
    manifest = describe(checkpoint_folder).to_bytes()
    add_signature(team, pushed.digest, key.public.id, key.sign(manifest))

    assert hub.pull(REF)
    assert "states no name and version" in caplog.text
    caplog.clear()
    add_signature(team, pushed.digest, key.public.id, key.sign(manifest, "acme/ner@v1"))
    assert hub.pull(REF)
    assert caplog.text == ""


def test_the_policy_belongs_to_the_address_under_any_name(team, tmp_path, key, checkpoint_folder):
    hub_of(team, tmp_path).push(checkpoint_folder, "acme/ner")
    (tmp_path / "link").symlink_to(tmp_path / "team")
    other = Registry(LocalStore(tmp_path / "link"), "other")
    hub = Hub({"team": team, "other": other}, Cache(tmp_path / "cache"), trust={"team": [key.public.pem]})

    for place in ("other", str(tmp_path / "link"), f"{tmp_path}/team/.", f"{tmp_path}/x/../link"):
        with pytest.raises(SignatureError):
            hub.pull(Reference.parse(f"{place}:acme/ner"))


def test_an_unsigned_delta_elsewhere_does_not_take_the_name_of_a_signed_one(
    team, tmp_path, key, checkpoint_folder, new_checkpoint, monkeypatch
):
    near = Registry(LocalStore(tmp_path / "near"), "near")
    hub = Hub({"near": near, "team": team}, Cache(tmp_path / "cache"), trust={"team": [key.public.pem]})
    hub.push(checkpoint_folder, "team:acme/ner", sign=key)
    hub.push(new_checkpoint(value=0.25), "near:acme/ner")
    hub.push(new_checkpoint(value=0.5), "near:acme/mine")

    with pytest.raises(SignatureError, match="team has a delta of this name"):
        hub.pull(REF)
    with pytest.raises(SignatureError):
        hub.pin(REF)
    assert hub.pull(Reference.parse("near:acme/ner"))
    assert hub.pull(Reference.parse("acme/mine"))

    lock = Lock(tmp_path / "deltahub.lock", {"acme/ner": hub.pin(Reference.parse("near:acme/ner"))})
    lock.write()
    monkeypatch.setenv("DELTAHUB_LOCK", str(lock.path))
    fresh = Hub({"near": near, "team": team}, Cache(tmp_path / "fresh"), trust={"team": [key.public.pem]})
    with pytest.raises(SignatureError):
        fresh.pull(REF)
    with pytest.raises(SignatureError):
        fresh.sync(lock)


def test_copies_and_bundles_take_nothing_unsigned_out_of_a_registry(team, tmp_path, key, checkpoint_folder):
    hub = hub_of(team, tmp_path, key)
    hub.push(checkpoint_folder, "acme/ner")
    with pytest.raises(SignatureError):
        list(copy(team, Registry(MemoryStore(), "mirror"), vouched=hub.vouched(team)))
    with pytest.raises(SignatureError):
        export_bundle([(team, REF)], tmp_path / "one.tar", vouched=hub.vouched)
    assert not (tmp_path / "one.tar").exists()
    hub.push(checkpoint_folder, "acme/ner", sign=key)

    assert [each.name for each in copy(team, Registry(MemoryStore(), "mirror"), vouched=hub.vouched(team))] == [
        "acme/ner"
    ]
    assert hub_of(team, tmp_path).vouched(team) is None


def test_an_earlier_copy_of_a_document_is_refused(team, tmp_path, key, checkpoint_folder, new_checkpoint):
    hub = hub_of(team, tmp_path, key)
    hub.push(checkpoint_folder, "acme/ner", sign=key)
    document = tmp_path / "team/refs/acme/ner.json"
    before = document.read_bytes()
    hub.push(new_checkpoint(value=0.25), "acme/ner", sign=key)
    hub.pull(REF)
    document.write_bytes(before)

    with pytest.raises(IntegrityError, match="An earlier copy of its document was put back"):
        hub.pull(REF)


def test_a_delta_can_have_several_signatures_and_a_key_only_one(team, tmp_path, key, other, checkpoint_folder):
    hub = hub_of(team, tmp_path)
    manifest = describe(checkpoint_folder)
    hub.push(checkpoint_folder, "acme/ner", sign=key)
    add_signature(team, manifest.digest, other.public.id, other.sign(manifest.to_bytes()))
    again = key.sign(manifest.to_bytes(), "acme/ner@v1")
    add_signature(team, manifest.digest, key.public.id, again)

    assert signatures(team, manifest.digest).keys() == {key.public.id, other.public.id}
    assert signatures(team, manifest.digest)[key.public.id] == again


def test_other_files_beside_signatures_are_passed_over(team, tmp_path, key, checkpoint_folder):
    pushed = hub_of(team, tmp_path).push(checkpoint_folder, "acme/ner", sign=key)
    folder = tmp_path / "team" / PREFIX / pushed.digest[7:]
    (folder / "README").write_text("x")
    (folder / "short.json").write_text("x")
    (folder / f"{'0' * 64}.json").write_bytes(b" " * (MOST + 1))

    assert list(signatures(team, pushed.digest)) == [key.public.id]


def test_a_copy_of_a_registry_is_signed_as_the_original(team, tmp_path, key, checkpoint_folder):
    pushed = hub_of(team, tmp_path).push(checkpoint_folder, "acme/ner", sign=key)
    mirror = Registry(MemoryStore(), "mirror")
    list(copy(team, mirror))

    assert signatures(mirror, pushed.digest) == signatures(team, pushed.digest)
    assert hub_of(mirror, tmp_path, key, cache="fresh").pull(REF)


def test_a_copy_brings_a_signature_that_came_later(team, tmp_path, key, checkpoint_folder):
    pushed = hub_of(team, tmp_path).push(checkpoint_folder, "acme/ner")
    mirror = Registry(MemoryStore(), "mirror")
    list(copy(team, mirror))
    add_signature(team, pushed.digest, key.public.id, key.sign(describe(checkpoint_folder).to_bytes()))
    list(copy(team, mirror))

    assert list(signatures(mirror, pushed.digest)) == [key.public.id]


def test_a_copy_leaves_signatures_that_are_there(team, key):
    mirror, digest = Registry(MemoryStore(), "mirror"), Digest.of_hex("1" * 64)
    add_signature(mirror, digest, key.public.id, b"mine")
    add_signature(team, digest, key.public.id, b"theirs")
    copy_signatures(team, mirror, [digest])

    assert signatures(mirror, digest) == {key.public.id: b"mine"}


def test_a_bucket_holds_signatures_too(s3, s3_keys, team, tmp_path, key, other, checkpoint_folder):
    bucket = Registry(BucketStore(s3.bucket(), QUICK), "bucket")
    pushed = hub_of(bucket, tmp_path, key).push(checkpoint_folder, "acme/ner", sign=key)
    add_signature(bucket, pushed.digest, other.public.id, b"{}")
    add_signature(bucket, pushed.digest, other.public.id, other.sign(describe(checkpoint_folder).to_bytes()))
    list(copy(bucket, team))

    assert signatures(bucket, pushed.digest).keys() == {key.public.id, other.public.id}
    assert signatures(team, pushed.digest) == signatures(bucket, pushed.digest)
    assert hub_of(bucket, tmp_path, key, cache="fresh").pull(REF)


def test_a_bundle_carries_signatures(team, tmp_path, key, checkpoint_folder):
    pushed = hub_of(team, tmp_path).push(checkpoint_folder, "acme/ner", sign=key)
    export_bundle([(team, REF)], tmp_path / "one.tar")
    export_bundle([(team, REF)], tmp_path / "two.tar")
    far = Registry(MemoryStore(), "far")
    import_bundle(tmp_path / "one.tar", far)

    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert signatures(far, pushed.digest) == signatures(team, pushed.digest)
    assert hub_of(far, tmp_path, key, cache="fresh").pull(REF)


def test_a_bundle_without_signatures_is_as_it_was(team, tmp_path, checkpoint_folder):
    hub_of(team, tmp_path).push(checkpoint_folder, "acme/ner")
    export_bundle([(team, REF)], tmp_path / "plain.tar")

    assert b"signatures" not in (tmp_path / "plain.tar").read_bytes()[:4096]


def test_a_collection_keeps_signatures(team, tmp_path, key, checkpoint_folder):
    hub = hub_of(team, tmp_path, key)
    pushed = hub.push(checkpoint_folder, "acme/ner", sign=key)
    from datetime import timedelta

    collect(team, timedelta(0))
    collect(team, timedelta(0))
    assert list(signatures(team, pushed.digest)) == [key.public.id]
    remove(team, "acme/ner", "v1")
    collect(team, timedelta(0))
    collect(team, timedelta(0))
    assert list(signatures(team, pushed.digest)) == [key.public.id]


def test_a_delta_is_signed_before_anybody_can_see_it(team, tmp_path, key, checkpoint_folder, monkeypatch):
    seen = []

    def watched(registry, publication, *arguments):
        seen.append(list(signatures(registry, publication.manifest.digest)))
        return publish(registry, publication, *arguments)

    monkeypatch.setattr("deltahub.sources.registry.publish", watched)
    hub_of(team, tmp_path).push(checkpoint_folder, "acme/ner", sign=key)

    assert seen == [[key.public.id]]


def test_signing_with_one_key_at_the_same_time_ends_with_one_signature(key, monkeypatch):
    registry, digest = Registry(MemoryStore(), "team"), Digest.of_hex("1" * 64)
    swap, beaten = registry.store.swap, []

    def raced(path, data, expected):
        if not beaten:
            beaten.append(swap(path, b"theirs", expected))
            raise ConflictError(path, expected, "another")
        return swap(path, data, expected)

    monkeypatch.setattr(registry.store, "swap", raced)
    add_signature(registry, digest, key.public.id, b"mine")

    assert signatures(registry, digest) == {key.public.id: b"mine"}
