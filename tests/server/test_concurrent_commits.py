"""Many who push to one repository at once all get through."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from deltahub.registry.registry import Registry
from deltahub.server.state import RepositoryLocks
from deltahub.stores.local import LocalStore
from tests.hub_server import hub_server
from tests.server.clients import Client


@pytest.mark.slow
def test_of_many_clients_that_commit_to_one_repository_none_is_sent_away(tmp_path):
    with hub_server(Registry(LocalStore(tmp_path))) as hub:
        secret = hub.token("write", "acme")

        def push(number: int) -> str:
            with Client(hub.url, secret) as client:
                client.create("acme/ner")
                return client.commit("acme/ner", {f"{number}.md": f"# {number}".encode()})

        with ThreadPoolExecutor(30) as threads:
            commits = set(threads.map(push, range(60)))
        with Client(hub.url, secret) as client:
            files = [client.pull("acme/ner", f"{number}.md") for number in range(60)]
    assert len(commits) == 60
    assert files == [f"# {number}".encode() for number in range(60)]


def test_a_turn_leaves_nothing_behind():
    repository_locks = RepositoryLocks()
    first = repository_locks.of("acme/ner")
    assert repository_locks.of("acme/ner") is first
    assert repository_locks.of("acme/sst2") is not first
    del first
    assert len(repository_locks._locks) == 0
