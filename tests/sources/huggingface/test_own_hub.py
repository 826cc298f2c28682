"""Between a hub of our own and the Hugging Face protocol a delta stays what it is, in both directions."""

from __future__ import annotations

import pytest

from deltahub.checkpoint import describe
from tests.checkpoints import content_of
from tests.sources.huggingface.test_failures import answer, flipped
from tests.sources.huggingface.test_push_and_pull import api, delta_files, ref

pytestmark = pytest.mark.parametrize("server", ["own"], indirect=True)


def test_what_was_pushed_over_the_protocol_is_in_the_registry_under_its_digest(hub, server, repo, checkpoint_folder):
    pushed = hub.push(checkpoint_folder, f"hf:{repo}", tags=["task=sst2"], aliases=["champion"], message="two epochs")
    document = server.registry.document(repo)

    assert [it.digest for it in document.versions.values()] == [pushed.digest]
    assert pushed.digest == describe(checkpoint_folder).digest
    assert document.versions["v1"].tags == ("task=sst2",)
    assert document.versions["v1"].message.startswith("two epochs")
    assert document.aliases == {"champion": "v1"}


def test_tags_of_a_later_push_are_added_to_the_version(hub, server, repo, checkpoint_folder):
    first = hub.push(checkpoint_folder, f"hf:{repo}", tags=["task=sst2"])
    second = hub.push(checkpoint_folder, f"hf:{repo}", tags=["best"])

    assert (second.reference, second.new, second.tags) == (first.reference, False, ("best", "task=sst2"))
    assert server.registry.document(repo).versions["v1"].tags == ("best", "task=sst2")


def test_what_was_pushed_to_the_registry_is_pulled_over_the_protocol(hub, server, repo, checkpoint_folder):
    manifest = describe(checkpoint_folder)
    server.registry.publish(ref(repo).anywhere(), manifest, checkpoint_folder, aliases=["champion"])
    pulled = hub.pull(ref(repo, "champion"))

    assert pulled.digest == manifest.digest
    assert delta_files(pulled.folder) == content_of(checkpoint_folder)
    assert set(api(hub).list_repo_files(repo)) == set(content_of(checkpoint_folder))


def test_a_small_delta_is_fetched_in_two_requests(user, repo, checkpoint_folder, proxy):
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.seen.clear()
    pulled = user().pull(ref(repo))

    assert [path.rpartition("/")[0].rpartition("/")[2] for _, path in proxy.seen] == ["main", "pack"]
    assert delta_files(pulled.folder) == content_of(checkpoint_folder)


@pytest.mark.parametrize(
    "fault", [flipped, answer(404, code="EntryNotFound"), answer(403)], ids=["damaged", "gone", "no"]
)
def test_what_is_not_right_among_the_files_is_fetched_by_itself(user, repo, checkpoint_folder, proxy, fault):
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.breaks(fault, method="GET", words="/pack/", times=None)
    assert delta_files(user().pull(ref(repo)).folder) == content_of(checkpoint_folder)


def test_a_large_delta_is_not_offered_in_one_answer(user, repo, checkpoint_folder, proxy, monkeypatch):
    monkeypatch.setattr("deltahub.server.packs._LARGEST", 100)
    user().push(checkpoint_folder, f"hf:{repo}")
    proxy.seen.clear()
    user().pull(ref(repo))
    assert not [path for _, path in proxy.seen if "/pack/" in path]
