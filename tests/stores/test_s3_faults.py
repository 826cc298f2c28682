"""A bad way to an S3 server: whatever is lost on it, nothing is written twice, half, or over somebody else's work."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace

import pytest

from deltahub.errors import ConflictError, NotFoundError, StorageError
from deltahub.stores.base import object_key
from deltahub.stores.bucket import PART
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.probe import refuse_weak
from tests.s3_proxy import Exchange, cut, lose, reset, status
from tests.s3_servers import QUICK

pytestmark = pytest.mark.slow  # a server that fails in every way

DOCUMENT = "refs/acme/ner.json"
WEIGHTS = b"weights"
SHA = hashlib.sha256(WEIGHTS).hexdigest()


def done_but_denied(exchange: Exchange) -> None:
    """Let the server do it, and answer that it failed."""
    exchange.forward()
    status(500, "InternalError")(exchange)


FAULTS = {
    "reset": reset,
    "lost": lose,
    "done but denied": done_but_denied,
    "500": status(500, "InternalError"),
    "503": status(503, "SlowDown"),
    "429": status(429, "TooManyRequests"),
}


@pytest.fixture
def good(s3, s3_keys) -> BucketStore:
    """A store, straight."""
    return BucketStore(s3.bucket(), QUICK)


@pytest.fixture
def store(good, proxy) -> BucketStore:
    """The same store by way of the proxy; the server is known to be a good one."""
    behind = BucketStore(replace(good.bucket, endpoint=proxy.url), QUICK)
    refuse_weak(behind._writer, behind.bucket)
    return behind


@pytest.fixture(params=list(FAULTS))
def fault(request):
    """One way in which a request can fail."""
    return FAULTS[request.param]


@pytest.mark.parametrize("times", [1, 2])
def test_a_document_is_swapped_once_despite_failures(store, good, proxy, fault, times):
    proxy.breaks(fault, times=times)
    first = store.swap(DOCUMENT, b"1", None)
    assert good.read_tagged(DOCUMENT) == (b"1", first)
    proxy.breaks(fault, times=times)
    second = store.swap(DOCUMENT, b"2", first)
    assert good.read_tagged(DOCUMENT) == (b"2", second)


@pytest.mark.parametrize("there", [False, True])
def test_a_server_that_asks_for_a_repetition_gets_one(store, good, proxy, there):
    before = store.swap(DOCUMENT, b"1", None) if there else None
    proxy.breaks(status(409, "ConditionalRequestConflict"))
    after = store.swap(DOCUMENT, b"2", before)
    assert good.read_tagged(DOCUMENT) == (b"2", after)


@pytest.mark.parametrize("fault", ["reset", "lost", "done but denied", "503"], indirect=True)
def test_concurrent_changes_are_never_overwritten(store, good, proxy, fault):
    etag = store.swap(DOCUMENT, b"1", None)

    def overtaken(exchange: Exchange) -> None:
        good.swap(DOCUMENT, b"theirs", etag)
        fault(exchange)

    proxy.breaks(overtaken)
    with pytest.raises(ConflictError):
        store.swap(DOCUMENT, b"mine", etag)
    assert good.read(DOCUMENT) == b"theirs"


def test_a_swap_that_was_done_and_then_overtaken_is_a_conflict_that_overwrites_nothing(store, good, proxy):
    etag = store.swap(DOCUMENT, b"1", None)

    def overtaken(exchange: Exchange) -> None:
        exchange.forward()
        good.swap(DOCUMENT, b"theirs", good.read_tagged(DOCUMENT)[1])
        exchange.reset()

    proxy.breaks(overtaken)
    with pytest.raises(ConflictError):
        store.swap(DOCUMENT, b"mine", etag)
    assert good.read(DOCUMENT) == b"theirs"


def test_objects_are_stored_despite_failures(store, good, proxy, fault):
    proxy.breaks(fault, times=2)
    store.create({SHA: WEIGHTS})
    assert good.read(object_key(SHA)) == WEIGHTS


@pytest.mark.parametrize(("method", "words"), [("POST", "?uploads"), ("PUT", "partNumber=2"), ("POST", "?uploadId")])
def test_a_multipart_file_is_stored_despite_failures(store, good, proxy, tmp_path, fault, method, words):
    data = os.urandom(PART + 1)
    (tmp_path / "big").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    proxy.breaks(fault, method=method, words=words)
    store.create({sha256: tmp_path / "big"})
    assert good.fetch(object_key(sha256), tmp_path / "copy") == sha256


def test_reading_continues_despite_failures(store, good, proxy, tmp_path, fault):
    good.create({SHA: WEIGHTS})
    for number, read in enumerate(
        (
            lambda: store.read(object_key(SHA)) == WEIGHTS,
            lambda: store.fetch(object_key(SHA), tmp_path / "copy") == SHA,
            lambda: [key for key, _ in store.keys("objects/")] == [object_key(SHA)],
            lambda: store.read_tagged(DOCUMENT) is None,
        )
    ):
        proxy.breaks(fault, method="GET", times=2)
        assert read(), number


def test_a_download_that_breaks_off_is_taken_up_where_it_was(store, good, proxy, tmp_path):
    data = os.urandom(3 << 20)
    sha256 = hashlib.sha256(data).hexdigest()
    good.create({sha256: data})
    proxy.breaks(cut(1_000_000), method="GET", times=2)
    seen: list[int] = []

    assert store.fetch(object_key(sha256), tmp_path / "copy", seen.append) == sha256
    assert (tmp_path / "copy").read_bytes() == data
    assert sum(seen) == len(data)


def test_a_key_is_removed_despite_failures(store, good, proxy, fault):
    good.create({SHA: WEIGHTS})
    proxy.breaks(fault, method="DELETE")
    store.delete(object_key(SHA))
    with pytest.raises(NotFoundError):
        good.read(object_key(SHA))


def test_a_server_that_fails_for_long_is_one_sentence_and_leaves_nothing(store, good, proxy, tmp_path):
    (tmp_path / "big").write_bytes(bytes(PART + 1))
    sha256 = hashlib.sha256(bytes(PART + 1)).hexdigest()
    proxy.breaks(status(503, "SlowDown"), times=None)
    for write in (
        lambda: store.create({SHA: WEIGHTS}),
        lambda: store.create({sha256: tmp_path / "big"}),
        lambda: store.swap(DOCUMENT, b"1", None),
    ):
        with pytest.raises(StorageError, match=r"\(503 SlowDown\)\. The server fails or has too much to do"):
            write()
    assert list(good.keys("")) == []


def test_a_server_that_does_not_answer_is_one_sentence(good, proxy, tmp_path):
    good.create({SHA: WEIGHTS})
    end = threading.Event()
    hasty = replace(QUICK, answer=0.1, upload=0.1, retries=1)
    store = BucketStore(replace(good.bucket, endpoint=proxy.url), hasty)
    proxy.breaks(lambda exchange: end.wait() and exchange.reset(), method="GET", times=None)
    proxy.breaks(lambda exchange: end.wait() and exchange.reset(), times=None)
    try:
        for call in (
            lambda: store.read(object_key(SHA)),
            lambda: store.fetch(object_key(SHA), tmp_path / "copy"),
            lambda: list(store.keys("")),
            lambda: store.create({SHA: WEIGHTS}),
        ):
            with pytest.raises(StorageError, match=r"\(no answer in time\)\. The server cannot be reached"):
                call()
    finally:
        end.set()
    assert not (tmp_path / "copy").exists()


def test_a_slow_server_is_waited_for(store, good, proxy):
    """An answer that takes its time is no failure, as long as the time that it may take is not over."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(exchange: Exchange) -> None:
        begun.set()
        go_on.wait()
        exchange.respond(*exchange.forward())

    proxy.breaks(slow)
    swapped: list[str] = []
    writer = threading.Thread(target=lambda: swapped.append(store.swap(DOCUMENT, b"1", None)))
    writer.start()
    assert begun.wait(30)
    assert good.read_tagged(DOCUMENT) is None
    go_on.set()
    writer.join()
    assert good.read_tagged(DOCUMENT) == (b"1", swapped[0])
