"""Webhooks as huggingface_hub manages them: who may, and what is kept for the delivery."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from deltahub.server.webhooks import Watched, Webhooks

WATCHED = [{"type": "org", "name": "acme"}, {"type": "model", "name": "ada/ner"}]


def create(api, **changes):
    return api.create_webhook(url="https://example.org/hook", watched=WATCHED, secret="s3cret", **changes)


def test_a_webhook_lives_until_its_owner_deletes_it(api):
    webhook = create(api, domains=["repo"])
    assert (webhook.url, webhook.secret, webhook.disabled) == ("https://example.org/hook", "s3cret", False)
    assert [item.name for item in webhook.watched] == ["acme", "ada/ner"]
    assert api.disable_webhook(webhook.id).disabled
    changed = api.update_webhook(webhook.id, url="https://example.org/other")
    assert changed.url == "https://example.org/other"
    assert changed.watched == webhook.watched
    assert changed.disabled
    assert not api.enable_webhook(webhook.id).disabled
    assert [one.id for one in api.list_webhooks()] == [webhook.id]
    api.delete_webhook(webhook.id)
    assert api.list_webhooks() == []
    with pytest.raises(HfHubHTTPError, match="has no webhook"):
        api.get_webhook(webhook.id)


def test_a_webhook_is_for_its_owner_alone(hub, user, api):
    webhook = create(api)
    other = user(hub)
    assert other.list_webhooks() == []
    for call in (other.get_webhook, other.delete_webhook, other.disable_webhook):
        with pytest.raises(HfHubHTTPError) as raised:
            call(webhook.id)
        assert raised.value.response.status_code == 404
    with pytest.raises(HfHubHTTPError, match="needs scope write"):
        user(hub, "read").list_webhooks()
    assert httpx2.get(f"{hub.url}/api/settings/webhooks").status_code == 401


def test_the_record_of_a_webhook_says_what_a_delivery_needs(hub, api):
    number = create(api).id
    (stored,) = Webhooks(hub.registry.store).all()
    assert (stored.id, stored.secret, stored.watched[0]) == (number, "s3cret", Watched("org", "acme"))
    assert stored.covers("acme/anything")
    assert stored.covers("ada/ner")
    assert not stored.covers("ada/other")
    api.disable_webhook(number)
    assert not Webhooks(hub.registry.store).all()[0].covers("acme/anything")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"url": "ftp://example.org", "watched": WATCHED}, 400),
        ({"url": "https://ada:secret@example.org", "watched": WATCHED}, 400),
        ({"url": "https://example.org", "watched": []}, 400),
        ({"url": "https://example.org", "watched": [{"type": "planet", "name": "mars"}]}, 400),
        ({"url": "https://example.org", "watched": [{"type": "dataset", "name": "a/b"}]}, 501),
        ({"url": "https://example.org", "watched": WATCHED, "domains": ["weather"]}, 400),
        ({"jobSourceId": "job", "watched": WATCHED}, 501),
    ],
)
def test_an_invalid_webhook_is_refused(hub, body, status):
    headers = {"Authorization": f"Bearer {hub.token()}"}
    answer = httpx2.post(f"{hub.url}/api/settings/webhooks", json=body, headers=headers)
    assert answer.status_code == status
    assert Webhooks(hub.registry.store).all() == []
