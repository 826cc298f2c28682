"""Several servers over one registry: whatever happens at once, one order of it holds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from huggingface_hub.errors import HfHubHTTPError

from deltahub.registry.registry import Registry
from deltahub.registry.verify import verify
from deltahub.server.settings import Settings
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.local import LocalStore
from tests.hub_server import hub_server
from tests.s3_servers import QUICK
from tests.server.clients import Client

pytestmark = pytest.mark.slow  # several hubs at once

REPO = "acme/sst2"


@pytest.fixture(params=["folder", "bucket"])
def hubs(request, tmp_path):
    """Two servers over one registry."""
    if request.param == "bucket":
        request.getfixturevalue("s3_keys")
        bucket = request.getfixturevalue("s3").bucket()
        stores = [BucketStore(bucket, QUICK), BucketStore(bucket, QUICK)]
    else:
        stores = [LocalStore(tmp_path / "served"), LocalStore(tmp_path / "served")]
    settings = Settings(rate=0)
    with hub_server(Registry(stores[0]), settings) as first, hub_server(Registry(stores[1]), settings) as second:
        yield first, second


def at_once(calls: list[Callable[[], object]]) -> list[object]:
    """Make calls at the same time: what each returned or raised."""
    start, found = threading.Barrier(len(calls)), [None] * len(calls)

    def run(number: int) -> None:
        start.wait()
        try:
            found[number] = calls[number]()
        except HfHubHTTPError as error:
            found[number] = error.response.status_code

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_of_commits_on_top_of_the_same_one_exactly_one_wins(hubs, user):
    users = [user(hubs[number % 2]) for number in range(6)]
    users[0].create_repo(REPO)
    parent = users[0].upload_file(repo_id=REPO, path_or_fileobj=b"0", path_in_repo="n").oid

    for turn in range(3):

        def commit(number: int, parent: str = parent, turn: int = turn) -> str:
            content = b"%d in turn %d" % (number, turn)
            made = users[number].upload_file(
                repo_id=REPO, path_or_fileobj=content, path_in_repo="n", parent_commit=parent
            )
            return made.oid

        found = at_once([lambda number=number: commit(number) for number in range(6)])
        won = [answer for answer in found if isinstance(answer, str)]
        assert (len(won), found.count(412)) == (1, 5)
        assert {user.model_info(REPO).sha for user in users} == {won[0]}
        parent = won[0]


def test_commits_without_a_parent_all_happen_one_on_top_of_the_other(hubs):
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(Client(hub.url, hub.token())) for hub in hubs for _ in range(3)]
        clients[0].create(REPO)
        found = at_once(
            [lambda n=n, each=each: each.commit(REPO, {f"file-{n}": b"%d" % n}) for n, each in enumerate(clients)]
        )

    document = hubs[0].registry.document(REPO)
    assert len(set(found)) == len(document.versions) == 6
    files = hubs[0].registry.manifest(document.versions[document.latest].digest).files
    assert [entry.path for entry in files] == [f"file-{n}" for n in range(6)]
    assert set(dict(verify(hubs[1].registry)).values()) == {None}


def test_a_repository_is_created_once(hubs, user):
    users = [user(hubs[number % 2]) for number in range(4)]
    found = at_once([lambda each=each: str(each.create_repo(REPO).repo_id) for each in users])

    assert (found.count(REPO), found.count(409)) == (1, 3)


def test_a_tag_is_created_once(hubs, user):
    users = [user(hubs[number % 2]) for number in range(4)]
    users[0].create_repo(REPO)
    users[0].upload_file(repo_id=REPO, path_or_fileobj=b"0", path_in_repo="n")
    found = at_once([lambda each=each: each.create_tag(REPO, tag="best") for each in users])

    assert (found.count(None), found.count(409)) == (1, 3)


def test_a_change_on_one_server_is_visible_on_the_other_at_once(hubs, user, tmp_path):
    writer, reader = user(hubs[0]), user(hubs[1])
    writer.create_repo(REPO, private=True)
    for number in range(5):
        made = writer.upload_file(repo_id=REPO, path_or_fileobj=b"%d" % number, path_in_repo="n")
        assert reader.model_info(REPO).sha == made.oid
        path = reader.hf_hub_download(REPO, "n", cache_dir=tmp_path)
        assert Path(path).read_bytes() == b"%d" % number
    assert reader.model_info(REPO).private
