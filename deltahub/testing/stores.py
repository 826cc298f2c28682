"""The contract of a store: objects that never change, documents that are swapped, keys with stamps."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
from pathlib import Path
from typing import Final

import pytest

from deltahub.errors import ConflictError, IntegrityError, NotFoundError
from deltahub.stores.base import Store, object_key


def sha256(data: bytes) -> str:
    """Return the sha256 of some bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def create(store: Store, *contents: bytes) -> list[str]:
    """Store objects; return their keys."""
    store.create({sha256(data): data for data in contents})
    return [object_key(sha256(data)) for data in contents]


DOCUMENT: Final = "refs/acme/ner.json"


class StoreContract:
    """Tests that every store has to pass; a subclass has a fixture `store` that returns an empty one."""

    def test_an_empty_store_has_nothing(self, store: Store, tmp_path: Path) -> None:
        assert store.read_tagged(DOCUMENT) is None
        assert list(store.keys("refs/")) == []
        with pytest.raises(NotFoundError, match=r"refs/acme/ner\.json was not found\. Looked in: "):
            store.read(DOCUMENT)
        with pytest.raises(NotFoundError):
            store.fetch(DOCUMENT, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    def test_reading_below_a_document_finds_nothing(self, store: Store, tmp_path: Path) -> None:
        store.swap("refs/acme", b"1", None)
        with pytest.raises(NotFoundError):
            store.read(DOCUMENT)
        with pytest.raises(NotFoundError):
            store.fetch(DOCUMENT, tmp_path / "copy")
        assert store.read_tagged(DOCUMENT) is None

    def test_an_object_is_read_and_fetched_as_it_was_stored(self, store: Store, tmp_path: Path) -> None:
        key, empty = create(store, b"weights", b"")
        seen: list[int] = []

        assert (store.read(key), store.read(empty)) == (b"weights", b"")
        assert store.fetch(key, tmp_path / "copy", seen.append) == sha256(b"weights")
        assert (tmp_path / "copy").read_bytes() == b"weights"
        assert sum(seen) == 7

    def test_a_range_of_an_object_is_read_piece_by_piece(self, store: Store) -> None:
        data = bytes(range(256)) * 12288  # 3 MiB
        (key,) = create(store, data)

        assert store.size(key) == len(data)
        ranges = ((0, None), (0, len(data)), (0, 1), (7, 7), (5, 4_000), (1_000_000, 2_200_000), (len(data) - 1, None))
        for start, end in ranges:
            assert b"".join(store.chunks(key, start, end)) == data[start:end]

    def test_an_empty_object_has_no_piece(self, store: Store) -> None:
        (key,) = create(store, b"")
        assert (store.size(key), list(store.chunks(key))) == (0, [])

    def test_a_missing_key_has_neither_size_nor_content(self, store: Store) -> None:
        with pytest.raises(NotFoundError):
            store.size(object_key("0" * 64))
        with pytest.raises(NotFoundError):
            next(store.chunks(object_key("0" * 64)))

    def test_an_object_may_come_from_a_file(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"weights")
        seen: list[int] = []
        store.create({sha256(b"weights"): tmp_path / "file"}, seen.append)

        assert store.read(object_key(sha256(b"weights"))) == b"weights"
        assert sum(seen) == 7

    def test_fetching_never_replaces_a_file(self, store: Store, tmp_path: Path) -> None:
        (key,) = create(store, b"weights")
        (tmp_path / "copy").write_bytes(b"mine")
        with pytest.raises(FileExistsError):
            store.fetch(key, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"mine"

    def test_storing_again_changes_nothing(self, store: Store) -> None:
        before = create(store, b"a")

        assert create(store, b"a") == before
        assert store.read(before[0]) == b"a"

    def test_bytes_with_another_digest_are_refused_and_nothing_is_stored(self, store: Store) -> None:
        with pytest.raises(IntegrityError, match=f"expected sha256:{'0' * 64}, found sha256:{sha256(b'b')}"):
            store.create({sha256(b"a"): b"a", "0" * 64: b"b"})
        assert list(store.keys("objects/")) == []

    def test_a_document_is_replaced_only_with_its_current_etag(self, store: Store) -> None:
        first = store.swap(DOCUMENT, b"1", None)
        assert store.read_tagged(DOCUMENT) == (b"1", first)
        second = store.swap(DOCUMENT, b"2", first)
        assert store.read_tagged(DOCUMENT) == (b"2", second)

        for expected in (None, first, "other"):
            with pytest.raises(ConflictError) as caught:
                store.swap(DOCUMENT, b"3", expected)
            assert (caught.value.what, caught.value.expected, caught.value.found) == (DOCUMENT, expected, second)
        assert store.read(DOCUMENT) == b"2"

    def test_of_two_equal_writes_the_second_fails(self, store: Store) -> None:
        first = store.swap(DOCUMENT, b"1", None)
        with pytest.raises(ConflictError):
            store.swap(DOCUMENT, b"1", None)
        store.swap(DOCUMENT, b"2", first)
        with pytest.raises(ConflictError):
            store.swap(DOCUMENT, b"2", first)

    def test_a_document_that_is_gone_is_not_replaced(self, store: Store) -> None:
        etag = store.swap(DOCUMENT, b"1", None)
        store.delete(DOCUMENT)
        with pytest.raises(ConflictError):
            store.swap(DOCUMENT, b"2", etag)
        assert store.read_tagged(DOCUMENT) is None

    def test_keys_are_those_that_start_with_the_prefix(self, store: Store) -> None:
        for key in ("refs/acme/ner.json", "refs/acme/nli.json", "refs/beta/ner.json", "other/x"):
            store.swap(key, b"1", None)

        def listed(prefix: str) -> list[str]:
            return [key for key, _ in store.keys(prefix)]

        assert listed("refs/") == ["refs/acme/ner.json", "refs/acme/nli.json", "refs/beta/ner.json"]
        assert listed("refs/acme/") == ["refs/acme/ner.json", "refs/acme/nli.json"]
        assert listed("refs/acme/ne") == ["refs/acme/ner.json"]
        assert listed("refs/a") == ["refs/acme/ner.json", "refs/acme/nli.json"]
        assert listed("refs/acme/ner.json") == ["refs/acme/ner.json"]
        assert listed("nothing/") == []

    def test_a_stamp_changes_whenever_the_bytes_do(self, store: Store) -> None:
        etag = store.swap(DOCUMENT, b"0", None)
        stamps = [dict(store.keys("refs/"))[DOCUMENT]]
        for number in range(1, 10):
            etag = store.swap(DOCUMENT, b"%d" % number, etag)
            stamps.append(dict(store.keys("refs/"))[DOCUMENT])

        assert all(before != after for before, after in itertools.pairwise(stamps))
        assert dict(store.keys("refs/"))[DOCUMENT] == stamps[-1]

    def test_deleting_a_missing_key_succeeds(self, store: Store) -> None:
        (key,) = create(store, b"a")
        store.delete(key)
        store.delete(key)
        with pytest.raises(NotFoundError):
            store.read(key)

    def test_of_many_writers_at_once_exactly_one_wins_each_round(self, store: Store) -> None:
        etag = store.swap(DOCUMENT, b"0", None)
        for number in range(1, 6):
            start = threading.Barrier(4)
            won: list[str] = []

            def write(
                me: int, start: threading.Barrier = start, won: list[str] = won, etag: str = etag, number: int = number
            ) -> None:
                start.wait()
                with contextlib.suppress(ConflictError):
                    won.append(store.swap(DOCUMENT, b"%d by %d" % (number, me), etag))

            threads = [threading.Thread(target=write, args=(me,)) for me in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1
            etag = won[0]
            found = store.read_tagged(DOCUMENT)
            assert found is not None
            assert found[1] == etag
