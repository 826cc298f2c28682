"""Bytes reach the disk whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import threading

import pytest

from deltahub.errors import IntegrityError, StorageError
from deltahub.files.atomic import (
    CHUNK,
    copy_hashed,
    locked,
    move_all,
    sha256_file,
    staging,
    storage_errors,
    sync_file,
    sync_folders,
    write_synced,
)
from tests.checkpoints import content_of
from tests.faults import FULL, INTERRUPT


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_a_file_is_hashed_and_copied_whatever_its_size(tmp_path, size):
    data = b"\x01" * size
    write_synced(tmp_path / "a", data)
    expected = (hashlib.sha256(data).hexdigest(), size)

    assert sha256_file(tmp_path / "a") == expected
    assert copy_hashed(tmp_path / "a", tmp_path / "b") == expected
    assert (tmp_path / "b").read_bytes() == data


def test_a_new_file_never_replaces_another(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "a", b"new")
    with pytest.raises(FileExistsError):
        copy_hashed(tmp_path / "a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_files_and_folders_can_be_synced(tmp_path):
    write_synced(tmp_path / "a", b"x")
    sync_file(tmp_path / "a")
    sync_folders([tmp_path, tmp_path])


def test_a_staging_folder_is_gone_afterwards_with_all_that_is_in_it(tmp_path):
    with staging(tmp_path / "new") as stage:
        (stage / "deep").mkdir()
        (stage / "deep/file").write_bytes(b"x")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_staging_folder_is_gone_after_an_interrupt_too(tmp_path):
    def work():
        with staging(tmp_path) as stage:
            (stage / "file").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(tmp_path.iterdir()) == []


def test_two_staging_folders_do_not_meet(tmp_path):
    with staging(tmp_path) as one, staging(tmp_path) as other:
        assert one != other


@pytest.mark.parametrize("name", ["tmp-results", "tmp-0", ".deltahub-notes", f".deltahub-{'g' * 32}"])
def test_an_old_folder_of_the_users_own_is_never_taken_for_a_leftover(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").write_bytes(b"x")
    os.utime(tmp_path / name, (1, 1))
    with staging(tmp_path):
        pass
    assert (tmp_path / name / "precious").read_bytes() == b"x"


def put(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_files_are_moved_together_and_others_stay(tmp_path):
    put(tmp_path / "stage", a="new", b="new")
    put(tmp_path / "folder", a="old", c="other")
    move_all(tmp_path / "stage", tmp_path / "folder", ("a", "b"))

    assert content_of(tmp_path / "folder") == {"a": b"new", "b": b"new", "c": b"other"}


def test_a_move_that_fails_half_way_puts_everything_back(tmp_path, faults):
    def prepare(case):
        put(tmp_path / f"stage-{case}", a="new", b="new", c="new")
        put(tmp_path / f"folder-{case}", a="old", c="old", d="other")
        return lambda: move_all(tmp_path / f"stage-{case}", tmp_path / f"folder-{case}", ("a", "b", "c"))

    for case, step, error in faults.each(faults.count(prepare("count")), FULL, INTERRUPT):
        move = prepare(case)
        with faults.at(step, error):
            try:
                move()
            except (OSError, KeyboardInterrupt):
                expected = {"a": b"old", "c": b"old", "d": b"other"}
            else:  # hard links are not needed
                expected = {"a": b"new", "b": b"new", "c": b"new", "d": b"other"}
        assert content_of(tmp_path / f"folder-{case}") == expected, case


def test_one_at_a_time_holds_a_lock(tmp_path):
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / "locks" / "x"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_lock_that_stays_held_is_a_storage_error_that_says_so(tmp_path):
    caught: list[StorageError] = []

    def work():
        try:
            with locked(tmp_path / "x", timeout=0.0):
                pass
        except StorageError as error:
            caught.append(error)

    with locked(tmp_path / "x"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert str(caught[0]) == (
        f"Another process has held the lock {tmp_path / 'x'} for 0 seconds. Wait for it to finish and repeat."
    )


def test_a_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "x"):
        raise ZeroDivisionError
    with locked(tmp_path / "x", timeout=0.0):
        pass


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "No space is left there. Free some and repeat; nothing was half written."),
        (errno.EDQUOT, "No space is left there. Free some and repeat; nothing was half written."),
        (errno.EACCES, "You may not write there. Ask its owner for the right, or choose another folder."),
        (errno.EROFS, "You may not write there. Ask its owner for the right, or choose another folder."),
        (errno.EIO, "Check that path and its disk, and repeat."),
        (errno.ENOTDIR, "Check that path and its disk, and repeat."),
    ],
)
def test_a_disk_error_says_what_failed_where_and_what_to_do(tmp_path, code, remedy):
    with pytest.raises(StorageError) as caught, storage_errors("Saving", tmp_path):
        raise OSError(code, "It broke", "some/file")
    assert str(caught.value) == f"Saving failed in {tmp_path} (It broke: some/file). {remedy}"


def test_other_errors_pass_through_as_they_are(tmp_path):
    for error in (IntegrityError("a", "b", "c"), StorageError("said already"), KeyboardInterrupt(), ValueError("no")):
        with pytest.raises(type(error)) as caught, storage_errors("Saving", tmp_path):
            raise error
        assert caught.value is error
