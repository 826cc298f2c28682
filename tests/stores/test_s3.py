"""A store in a bucket, beyond what every store promises."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import obstore
import pytest

from deltahub.cache.cache import Cache
from deltahub.errors import ConflictError, IntegrityError, StorageError
from deltahub.files.atomic import sha256_file
from deltahub.hub.hub import Hub
from deltahub.registry.registry import Registry
from deltahub.registry.verify import verify
from deltahub.stores import probe
from deltahub.stores.base import object_key
from deltahub.stores.bucket import PART, Bucket
from deltahub.stores.bucket_clients import connect
from deltahub.stores.bucket_store import BucketStore
from tests.s3_proxy import Proxy, status, without
from tests.s3_servers import QUICK, READER

pytestmark = pytest.mark.slow  # S3 servers

DOCUMENT = "refs/acme/ner.json"
WEIGHTS = b"weights"
SHA = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def store(s3, s3_keys) -> BucketStore:
    return BucketStore(s3.bucket(), QUICK)


def overwrite(store: BucketStore, key: str, data: bytes) -> None:
    """Write past the store, as another program could."""
    obstore.put(connect(store.bucket, QUICK)[1], key, data)


def stored(store: BucketStore) -> list[str]:
    return [key for key, _ in store.keys("")]


def new_file(folder: Path, size: int) -> tuple[Path, str]:
    path = folder / "big"
    path.write_bytes(os.urandom(size))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("server", ["s3", "moto", "seaweed"])
@pytest.mark.parametrize("size", [PART, PART + 1, 2 * PART])
def test_a_file_of_several_parts_is_read_as_it_was_stored(request, s3_keys, tmp_path, server, size):
    store = BucketStore(request.getfixturevalue(server).bucket(), QUICK)
    path, sha256 = new_file(tmp_path, size)
    sent: list[int] = []
    fetched: list[int] = []
    store.create({sha256: path, SHA: WEIGHTS}, sent.append)

    assert store.fetch(object_key(sha256), tmp_path / "copy", fetched.append) == sha256
    assert (sum(sent), sum(fetched)) == (size + len(WEIGHTS), size)
    assert store.read(object_key(SHA)) == WEIGHTS


def test_a_damaged_object_is_written_again(store):
    store.create({SHA: WEIGHTS})
    for damage in (b"", WEIGHTS[:-1], b"Weights", WEIGHTS + b"!"):
        overwrite(store, object_key(SHA), damage)
        store.create({SHA: WEIGHTS})
        assert store.read(object_key(SHA)) == WEIGHTS


def test_a_file_that_changes_while_its_parts_are_sent_is_never_put_together(store, tmp_path):
    path, sha256 = new_file(tmp_path, 2 * PART)
    last, changed = bytes([path.read_bytes()[-1] ^ 1]), []

    def change(count: int) -> None:
        if not changed:
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(last)
        changed.append(count)

    with pytest.raises(IntegrityError, match="It changed while it was published; repeat"):
        store.create({sha256: path}, change)
    assert changed
    assert [key for key in stored(store) if key.startswith("objects/")] == []


MEASURED = """
import sys
from pathlib import Path
from deltahub.stores.bucket import Bucket
from deltahub.stores.bucket_store import BucketStore
from tests.s3_servers import QUICK

def most():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

store = BucketStore(Bucket(*sys.argv[1:4]), QUICK)
store.create({sys.argv[4]: Path(sys.argv[5])})
before = most()
store.create({sys.argv[6]: Path(sys.argv[7])})
store.fetch(f"objects/sha256/{sys.argv[6][:2]}/{sys.argv[6][2:]}", Path(sys.argv[7] + ".copy"))
print(most() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured as Linux tells it")
def test_a_big_file_takes_no_more_memory_than_one_of_a_few_parts(s3, s3_keys, tmp_path):
    arguments = [*dataclasses.astuple(s3.bucket())[:3]]
    for name, parts in (("small", 3), ("big", 12)):
        path = tmp_path / name
        path.write_bytes(bytes(parts * PART))
        arguments += [sha256_file(path)[0], str(path)]
    command, root = [sys.executable, "-c", MEASURED, *arguments], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16  # MB; the file has 72 MB more


def test_one_prefix_knows_nothing_of_another(s3, s3_keys):
    one, other = BucketStore(s3.bucket(), QUICK), BucketStore(s3.bucket(), QUICK)
    one.swap(DOCUMENT, b"1", None)
    assert (stored(one), stored(other)) == ([DOCUMENT], [])


def test_a_store_can_be_the_whole_bucket(s3, s3_keys):
    store = BucketStore(Bucket(s3.bucket().name, "", s3.url), QUICK)
    etag = store.swap("refs/whole/bucket.json", b"1", None)
    assert store.read_tagged("refs/whole/bucket.json") == (b"1", etag)
    assert [key for key, _ in store.keys("refs/whole/")] == ["refs/whole/bucket.json"]
    store.delete("refs/whole/bucket.json")


# ----- what a server must be able to do -----


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (["if-match"], "ignores If-Match"),
        (["if-none-match"], "ignores If-None-Match"),
        (["if-match", "if-none-match"], "ignores If-None-Match"),
    ],
)
def test_a_server_that_ignores_conditions_is_read_and_never_written(proxy: Proxy, s3, headers, reason):
    good = BucketStore(s3.bucket(), QUICK)
    etag = good.swap(DOCUMENT, b"1", None)
    proxy.breaks(without(*headers), times=None)
    weak = BucketStore(Bucket(good.bucket.name, good.bucket.prefix, proxy.url), QUICK)

    for write in (lambda: weak.create({SHA: WEIGHTS}), lambda: weak.swap(DOCUMENT, b"2", etag)):
        with pytest.raises(StorageError, match=f"{reason}: of two people who push at once") as caught:
            write()
        assert "DeltaHub reads from it, but does not write to it" in str(caught.value)
    assert weak.read(DOCUMENT) == b"1"
    assert stored(good) == [DOCUMENT]


def test_a_server_without_conditional_writes_is_never_written(proxy: Proxy):
    proxy.breaks(status(501, "NotImplemented"), times=None)
    store = BucketStore(Bucket("deltas", "test/old", proxy.url), QUICK)
    with pytest.raises(StorageError, match="does not know conditional writes"):
        store.swap(DOCUMENT, b"1", None)


def test_a_server_is_asked_once_before_the_first_write_and_never_for_reading(proxy: Proxy, s3):
    place = s3.bucket(endpoint=proxy.url)
    BucketStore(place, QUICK).read_tagged(DOCUMENT)
    list(BucketStore(place, QUICK).keys("refs/"))
    assert [path for _, path in proxy.requests if "/probe/" in path] == []

    BucketStore(place, QUICK).swap(DOCUMENT, b"1", None)
    asked = len([path for _, path in proxy.requests if "/probe/" in path])
    BucketStore(place, QUICK).create({SHA: WEIGHTS})
    assert asked > 0
    assert len([path for _, path in proxy.requests if "/probe/" in path]) == asked
    assert stored(BucketStore(place, QUICK)) == [object_key(SHA), DOCUMENT]


def test_an_answer_that_was_lost_makes_no_server_weak(proxy: Proxy, s3):
    for step in range(5):
        probe._weaknesses.clear()
        proxy.rules.clear()
        proxy.breaks(
            lambda exchange: (exchange.forward(), status(500, "InternalError")(exchange)), words="/probe/", skip=step
        )
        BucketStore(s3.bucket(endpoint=proxy.url), QUICK).swap(DOCUMENT, b"1", None)


@pytest.mark.parametrize("server", ["s3", "moto", "seaweed"])
def test_concurrent_pushes_to_one_delta_lose_nothing(request, s3_keys, new_checkpoint, tmp_path, server):
    bucket, folders = request.getfixturevalue(server).bucket(), [new_checkpoint(value=float(n)) for n in range(5)]
    hubs = [Hub({"team": Registry(BucketStore(bucket, QUICK), "team")}, Cache(tmp_path / "cache")) for _ in folders]
    start, pushed = threading.Barrier(len(folders)), []

    def push(hub: Hub, folder: Path) -> None:
        start.wait()
        pushed.append(hub.push(folder, "acme/ner", tags=[folder.name]))

    threads = [threading.Thread(target=push, args=pair) for pair in zip(hubs, folders, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    document = hubs[0].registry("team").document("acme/ner")
    assert {name: entry.digest for name, entry in document.versions.items()} == {
        done.reference.version: done.digest for done in pushed
    }
    assert sorted(document.versions) == ["v1", "v2", "v3", "v4", "v5"]
    assert set(dict(verify(hubs[0].registry("team"))).values()) == {None}


# ----- rights, and places that are not there -----


def test_with_read_only_keys_everything_can_be_read_and_nothing_written(seaweed, s3_keys, monkeypatch):
    store = BucketStore(seaweed.bucket(), QUICK)
    etag = store.swap(DOCUMENT, b"1", None)
    store.create({SHA: WEIGHTS})
    probe._weaknesses.clear()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER[1])
    reader = BucketStore(store.bucket, QUICK)

    assert reader.read_tagged(DOCUMENT) == (b"1", etag)
    assert reader.read(object_key(SHA)) == WEIGHTS
    assert [key for key, _ in reader.keys("refs/")] == [DOCUMENT]
    for write in (
        lambda: reader.create({SHA: WEIGHTS}),
        lambda: reader.swap(DOCUMENT, b"2", etag),
        lambda: reader.delete(DOCUMENT),
    ):
        with pytest.raises(StorageError, match=r"\(403 AccessDenied\)\. You may not write there\. Ask its owner"):
            write()


@pytest.mark.parametrize(
    ("variable", "code"),
    [("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch")],
)
def test_wrong_credentials_are_one_sentence(seaweed, s3_keys, monkeypatch, variable, code):
    monkeypatch.setenv(variable, "wrong")
    store = BucketStore(seaweed.bucket(), QUICK)
    for call in (
        lambda: store.read(DOCUMENT),
        lambda: list(store.keys("refs/")),
        lambda: store.swap(DOCUMENT, b"", None),
    ):
        with pytest.raises(
            StorageError, match=f"403 {code}.*Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) as caught:
            call()
        assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("server", ["s3", "moto", "seaweed"])
def test_a_bucket_that_does_not_exist_is_no_empty_store(request, s3_keys, tmp_path, server):
    store = BucketStore(Bucket("nowhere", "x", request.getfixturevalue(server).url), QUICK)
    for call in (
        lambda: store.read(DOCUMENT),
        lambda: store.read_tagged(DOCUMENT),
        lambda: list(store.keys("refs/")),
        lambda: store.fetch(DOCUMENT, tmp_path / "copy"),
        lambda: store.swap(DOCUMENT, b"1", None),
        lambda: store.create({SHA: WEIGHTS}),
    ):
        with pytest.raises(StorageError, match=r"\(404 NoSuchBucket\)\. The bucket 'nowhere' does not exist there\."):
            call()
    assert not (tmp_path / "copy").exists()


def test_a_server_that_cannot_be_reached_is_one_sentence(s3_keys):
    store = BucketStore(Bucket("deltas", "x", "http://127.0.0.1:1"), QUICK)
    for call in (lambda: store.read(DOCUMENT), lambda: list(store.keys("refs/")), lambda: store.create({SHA: WEIGHTS})):
        with pytest.raises(
            StorageError, match=r"\(connection refused\)\. The server cannot be reached\. Check the network"
        ):
            call()


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (507, "InsufficientStorage", "No space is left there"),
        (403, "QuotaExceeded", "No space is left there"),
        (400, "ExpiredToken", "The credentials have expired"),
        (403, "RequestTimeTooSkewed", "This machine's clock is wrong"),
        (400, "AuthorizationHeaderMalformed", "The bucket is in another region"),
        (301, "PermanentRedirect", "The bucket is in another region"),
        (401, "Unauthorized", "does not know these credentials"),
        (400, "Strange", r"\(400 Strange\)\. Check the address"),
    ],
)
def test_server_errors_become_one_clear_error_with_a_remedy(proxy: Proxy, s3, number, code, words):
    store = BucketStore(s3.bucket(endpoint=proxy.url), QUICK)
    etag = store.swap(DOCUMENT, b"1", None)
    proxy.breaks(status(number, code), times=None)
    with pytest.raises(StorageError, match=words) as caught:
        store.swap(DOCUMENT, b"2", etag)
    assert "\n" not in str(caught.value)
    assert store.read(DOCUMENT) == b"1"


def test_of_two_swaps_of_one_document_the_second_fails(store):
    first = store.swap(DOCUMENT, b"1", None)
    second = store.swap(DOCUMENT, b"2", first)
    with pytest.raises(ConflictError):
        BucketStore(store.bucket, QUICK).swap(DOCUMENT, b"3", first)
    assert store.read_tagged(DOCUMENT) == (b"2", second)
