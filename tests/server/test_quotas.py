"""Quotas of namespaces: what has no room is refused before anything is published, also when several push at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from deltahub.errors import NotFoundError
from deltahub.registry.edits import remove
from deltahub.registry.registry import Registry
from deltahub.server.errors import Refusal
from deltahub.server.quotas import Quotas, Usage
from deltahub.stores.memory import MemoryStore
from tests.hub_server import HubServer, hub_server


@pytest.fixture
def quotas() -> Quotas:
    return Quotas(Registry(MemoryStore()))


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server(Registry(MemoryStore(), "served")) as running:
        yield running


@pytest.fixture
def api(hub, monkeypatch) -> HfApi:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return HfApi(hub.url, hub.token("write"))


def upload(api: HfApi, size: int, repo: str = "acme/ner", name: str = "file.txt") -> None:
    api.create_repo(repo, exist_ok=True)
    api.upload_file(path_or_fileobj=b"x" * size, path_in_repo=name, repo_id=repo)


def test_a_push_without_room_is_refused_and_publishes_nothing(hub, api):
    quotas = Quotas(hub.registry)
    quotas.set("acme", 5000, None)
    upload(api, 3000)
    used = quotas.get("acme").used
    assert (used.deltas, 3000 <= used.bytes <= 5000) == (1, True)
    with pytest.raises(
        HfHubHTTPError, match=r"acme may hold 5,000 bytes, 3,\d+ are taken, and this version has"
    ) as caught:
        upload(api, 4000)
    assert caught.value.response.status_code == 507
    with pytest.raises(HfHubHTTPError) as caught:
        upload(api, 50_000)
    assert caught.value.response.status_code == 413
    assert len(hub.registry.document("acme/ner").versions) == 1
    upload(api, 50_000, "other/ner")  # the quota is that of one namespace


def test_removed_versions_make_room(hub, api):
    quotas = Quotas(hub.registry)
    quotas.set("acme", 6000, None)
    upload(api, 3000)
    upload(api, 100)
    remove(hub.registry, "acme/ner", "v1")
    upload(api, 5000)
    assert quotas.all()[0].taken.bytes <= 6000


def test_the_number_of_deltas_is_limited(hub, api):
    Quotas(hub.registry).set("acme", None, 1)
    upload(api, 10)
    upload(api, 20)  # a further version of the same
    with pytest.raises(HfHubHTTPError, match="acme may hold 1 deltas, and has them"):
        upload(api, 10, "acme/other")


def test_the_first_commit_of_a_new_repository_counts_once_a_tag_needs_it(hub, api):
    Quotas(hub.registry).set("acme", None, 1)
    upload(api, 10)
    api.create_repo("acme/other")
    with pytest.raises(HfHubHTTPError, match="acme may hold 1 deltas, and has them"):
        api.create_tag("acme/other", tag="start")


def test_a_delta_is_not_moved_to_a_namespace_without_room(hub, api):
    Quotas(hub.registry).set("acme", 100, None)
    upload(api, 3000, "other/ner")
    with pytest.raises(HfHubHTTPError, match="acme may hold 100 bytes"):
        api.move_repo("other/ner", "acme/ner")
    assert hub.registry.document("other/ner").versions


def test_of_many_pushes_at_once_no_more_are_let_in_than_have_room(quotas):
    quotas.set("acme", 50, None)
    let_in, refused, decided = [], [], threading.Semaphore(0)
    all_decided = threading.Event()

    def push() -> None:
        try:
            with quotas.reserved("acme", Usage(10, 0)):
                let_in.append(1)
                decided.release()
                all_decided.wait(20)
        except Refusal:
            refused.append(1)
            decided.release()

    threads = [threading.Thread(target=push) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert all(decided.acquire(timeout=20) for _ in threads)
    all_decided.set()
    for thread in threads:
        thread.join(20)
    assert (len(let_in), len(refused)) == (5, 3)
    assert quotas.get("acme").taken == Usage(50, 0)


def test_a_push_that_fails_gives_its_room_back(quotas):
    quotas.set("acme", 50, None)
    with pytest.raises(InterruptedError), quotas.reserved("acme", Usage(40, 1)):
        raise InterruptedError
    assert quotas.get("acme").taken == Usage()


def test_what_others_reserved_is_taken(quotas):
    quotas.set("acme", 50, None)
    with quotas.reserved("acme", Usage(40, 1)):
        with pytest.raises(Refusal, match="40 are taken"), quotas.reserved("acme", Usage(20, 1)):
            pass
        with quotas.reserved("acme", Usage(10, 1)):
            assert quotas.get("acme").taken == Usage(50, 2)


def test_the_reservation_of_a_process_that_died_ends(quotas, monkeypatch):
    quotas.set("acme", 50, None)
    abandoned = quotas.reserved("acme", Usage(40, 1))
    abandoned.__enter__()
    with pytest.raises(Refusal, match="40 are taken"), quotas.reserved("acme", Usage(40, 1)):
        pass
    later = datetime.now(UTC) + timedelta(hours=2)
    monkeypatch.setattr(
        "deltahub.registry.stamps.now", lambda: later.isoformat(timespec="seconds").replace("+00:00", "Z")
    )
    with quotas.reserved("acme", Usage(40, 1)):
        pass


def test_a_namespace_without_a_quota_takes_anything(quotas):
    with quotas.reserved("acme", Usage(1 << 60, 1)):
        pass
    with pytest.raises(NotFoundError, match="The quota of acme"):
        quotas.remove("acme")
