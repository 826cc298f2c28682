"""Tokens: made once, shown once, kept as a hash, found by their id, refused when they are wrong, expired or revoked."""

from __future__ import annotations

import hmac
import re
from datetime import timedelta

import pytest

from deltahub.errors import ConfigError, IntegrityError, NotFoundError, ReferenceSyntaxError
from deltahub.registry import stamps
from deltahub.registry.hub_records import TOKENS
from deltahub.server import tokens as module
from deltahub.server.tokens import Tokens, hashed, holder, id_of
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore

LATER = "2999-01-01T00:00:00Z"


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(MemoryStore())


def test_a_secret_leads_to_its_token_and_is_stored_nowhere(tmp_path):
    tokens = Tokens(LocalStore(tmp_path))
    token, secret = tokens.create("ci", "write", ["acme"])
    assert tokens.find(id_of(secret)) == token
    assert holder(token, secret) == token
    random = secret[22:]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert secret.encode() not in written
    assert random.encode() not in written
    assert hashed(secret).encode() in written


def test_two_secrets_are_never_the_same(tokens):
    secrets = {tokens.create(f"ci{number}", "read")[1] for number in range(50)}
    assert len(secrets) == 50
    assert all(re.fullmatch(r"dhub_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", secret) for secret in secrets)


def test_a_token_is_found_without_a_look_at_the_others(tokens, monkeypatch):
    made = [tokens.create(f"ci{number}", "read")[1] for number in range(5)]
    monkeypatch.setattr(MemoryStore, "keys", lambda *_: pytest.fail("the tokens were listed"))
    assert tokens.find(id_of(made[3])).name == "ci3"


def test_the_comparison_in_constant_time_is_the_one_that_decides(tokens, monkeypatch):
    token, secret = tokens.create("ci", "read")
    asked = []

    def compare(one, other):
        asked.append((one, other))
        return False

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    assert holder(token, secret) is None
    assert asked == [(hashed(secret), token.sha256)]
    monkeypatch.setattr(module.hmac, "compare_digest", lambda one, other: True)
    assert holder(token, secret[:-1] + "?") == token


def test_an_unknown_id_costs_the_same_comparison(monkeypatch):
    asked = []
    compare = hmac.compare_digest
    monkeypatch.setattr(module.hmac, "compare_digest", lambda *both: asked.append(both) or compare(*both))
    assert holder(None, "dhub_" + "0" * 16 + "_" + "a" * 43) is None
    assert holder(None, "") is None
    assert [len(both[1]) for both in asked] == [64, 64]


@pytest.mark.parametrize("position", [22, 40, 64])
def test_a_secret_with_one_changed_character_is_invalid(tokens, position):
    token, secret = tokens.create("ci", "read")
    other = "A" if secret[position] != "A" else "B"
    assert holder(token, secret[:position] + other + secret[position + 1 :]) is None


def test_a_token_is_refused_from_the_moment_it_expires(tokens, monkeypatch):
    token, _ = tokens.create("ci", "read", expires=timedelta(days=30))
    assert token.fault(stamps.now()) is None
    assert token.fault(token.expires) == f"it expired at {token.expires}"
    assert token.fault(LATER) is not None


def test_a_token_is_revoked_on_a_full_disk(tmp_path, full_disk):
    store = LocalStore(tmp_path)
    store.create({hashed("x"): b"x"})
    token, _ = Tokens(store).create("ci", "read")
    with full_disk():
        assert Tokens(store).revoke("ci")[0].id == token.id
    assert Tokens(store).all()[0].revoked


def test_a_revoked_token_stays_revoked_and_its_name_is_free(tokens):
    token, secret = tokens.create("ci", "read")
    (revoked,) = tokens.revoke("ci")
    assert revoked.id == token.id
    assert tokens.find(id_of(secret)).fault(stamps.now()) == "it was revoked"
    again, _ = tokens.create("ci", "write")
    assert [known.id for known in tokens.all() if not known.revoked] == [again.id]
    with pytest.raises(NotFoundError, match="not revoked"):
        tokens.revoke(token.id)


def test_a_name_in_use_is_refused(tokens):
    tokens.create("ci", "read")
    with pytest.raises(ConfigError, match="in use"):
        tokens.create("ci", "read")


def test_an_invalid_token_is_refused_before_anything_is_stored(tokens):
    for name in ("", "a/b", "a b", "é", "../x", "a\nb"):
        with pytest.raises(ReferenceSyntaxError):
            tokens.create(name, "read")
    with pytest.raises(ReferenceSyntaxError):
        tokens.create("ci", "write", ["a/../b"])
    for scope in ("none", "root", ""):
        with pytest.raises(ConfigError, match="is not a token scope"):
            tokens.create("ci", scope)
    with pytest.raises(ConfigError, match="everything everywhere"):
        tokens.create("ci", "admin", ["acme"])
    assert tokens.all() == []


@pytest.mark.parametrize(
    "text", ["", "hf_abc", "dhub_", "dhub_0_x", "dhub_" + "0" * 16 + "_" + "a" * 44, "dhub_" + "../" * 6]
)
def test_an_invalid_secret_leads_to_no_key(text):
    assert id_of(text) is None


def test_a_damaged_document_gives_no_access():
    store = MemoryStore()
    tokens = Tokens(store)
    token, _ = tokens.create("ci", "read")
    key = f"{TOKENS.prefix}{token.id}.json"
    data, etag = store.read_tagged(key)
    for damage in (b"", b"{}", b"[]", data[:-9], data.replace(b'"read"', b'"root"')):
        etag = store.swap(key, damage, etag)
        with pytest.raises(IntegrityError, match="token"):
            tokens.find(token.id)
    other, _ = tokens.create("other", "admin")
    store.swap(key, store.read(f"{TOKENS.prefix}{other.id}.json"), etag)
    with pytest.raises(IntegrityError, match=f"found the one of {TOKENS.prefix}{other.id}"):
        tokens.find(token.id)
