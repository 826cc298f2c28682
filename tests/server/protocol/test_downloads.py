"""Files by hand: whole, in part, not at all when nothing changed, and never damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import requests

from deltahub.stores.base import object_key

pytestmark = pytest.mark.slow  # a hub and files of many parts

REPO = "acme/sst2"
DATA = hashlib.shake_256(b"weights").digest(3_500_000)
ETAG = f'"{hashlib.sha256(DATA).hexdigest()}"'


@pytest.fixture
def address(hub, api) -> str:
    api.create_repo(REPO)
    api.upload_file(repo_id=REPO, path_or_fileobj=DATA, path_in_repo="sub/weights.safetensors")
    return f"{hub.url}/{REPO}/resolve/main/sub/weights.safetensors"


def get(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers={"Accept-Encoding": "identity", **headers}, timeout=30)


def test_the_head_says_what_the_body_will_be(hub, api, address):
    head = requests.head(address, timeout=30)

    assert (head.status_code, head.headers["ETag"], head.headers["Content-Length"]) == (200, ETAG, str(len(DATA)))
    assert head.headers["X-Repo-Commit"] == api.model_info(REPO).sha
    assert get(address).content == DATA


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-1999999", 100, 2_000_000),
        ("bytes=3499990-", 3_499_990, len(DATA)),
        ("bytes=-5", len(DATA) - 5, len(DATA)),
        ("bytes=0-99999999", 0, len(DATA)),
        ("bytes=-99999999", 0, len(DATA)),
    ],
)
def test_a_range_is_answered_with_just_these_bytes(address, asked, start, end):
    answer = get(address, Range=asked)

    assert (answer.status_code, answer.content) == (206, DATA[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"


@pytest.mark.parametrize("asked", ["bytes=3500000-", "bytes=5-4", "bytes=-0"])
def test_a_range_outside_of_the_file_is_refused_with_its_size(address, asked):
    answer = get(address, Range=asked)
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=-", "lines=1-2", "bytes=a-b", "nonsense"])
def test_any_other_range_header_is_answered_with_the_whole_file(address, asked):
    assert get(address, Range=asked).status_code == 200


def test_a_range_of_a_changed_file_is_answered_with_the_whole_file(address):
    assert get(address, **{"Range": "bytes=0-9", "If-Range": ETAG}).status_code == 206
    assert get(address, **{"Range": "bytes=0-9", "If-Range": '"other"'}).content == DATA


def test_files_that_the_caller_has_are_not_sent_again(address):
    answer = get(address, **{"If-None-Match": ETAG})
    assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", ETAG)


def test_damaged_bytes_never_arrive_as_a_whole_answer(hub, api, address):
    stored = Path(hub.registry.store.url) / object_key(ETAG.strip('"'))
    stored.chmod(0o600)
    stored.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(requests.exceptions.RequestException):
        get(address)

    api.upload_file(repo_id=REPO, path_or_fileobj=b"small", path_in_repo="small")
    stored = Path(hub.registry.store.url) / object_key(hashlib.sha256(b"small").hexdigest())
    stored.chmod(0o600)
    stored.write_bytes(b"smalL")
    answer = get(f"{hub.url}/{REPO}/resolve/main/small")
    assert (answer.status_code, "damaged" in answer.json()["error"]) == (500, True)
    stored.unlink()
    assert get(f"{hub.url}/{REPO}/resolve/main/small").status_code == 500


def test_nothing_that_was_pushed_is_taken_for_a_page(hub, api):
    api.create_repo(REPO)
    api.upload_file(repo_id=REPO, path_or_fileobj=b"<script>alert(1)</script>", path_in_repo="x';\u00e9.html")
    answer = get(f"{hub.url}/{REPO}/resolve/main/x%27%3B%C3%A9.html")

    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''x%27%3B%C3%A9.html"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_missing_file_says_of_which_commit_it_is_none(hub, api, address):
    answer = get(f"{hub.url}/{REPO}/resolve/main/nothing")

    assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert answer.headers["X-Repo-Commit"] == api.model_info(REPO).sha
