"""Protected aliases move only by the rules, whatever changes the registry."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from deltahub.checkpoint.checkpoint import describe
from deltahub.errors import (
    ApprovalNeededError,
    ConfigError,
    ConflictError,
    IntegrityError,
    InUseError,
    NotFoundError,
    RefusedMoveError,
)
from deltahub.reference import DeltaPath, Reference
from deltahub.registry.actor import NOBODY, Actor
from deltahub.registry.amend import Amendment, amend
from deltahub.registry.bundle import export_bundle, import_bundle
from deltahub.registry.edits import remove, set_alias, undo
from deltahub.registry.mirror import copy
from deltahub.registry.promotion.policy import KEY, Policy, read_policy, write_policy
from deltahub.registry.promotion.requests import approve, ask, record_probe, reject
from deltahub.registry.publish import Publication, publish, publish_many
from deltahub.registry.purge import reuse_name
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.registry.signatures import add_signature
from deltahub.signing import PrivateKey
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import save_checkpoint
from tests.keys import new_key

X = DeltaPath("acme/x")
ADMIN, ANN, BOB, CAT, DAN = (Actor(name, "write") for name in ("root", "ann", "bob", "cat", "dan"))
ADMIN = replace(ADMIN, scope="admin")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return [save_checkpoint(root / str(number), value=number / 4) for number in range(4)]


def publication(folder, path=X, **options) -> Publication:
    return Publication(Reference(path), describe(folder), folder, **options)


@pytest.fixture
def registry(folders):
    """Three versions, of which the first is the champion; the alias needs two approvals."""
    made = Registry(MemoryStore())
    for number in range(3):
        publish(made, publication(folders[number], aliases=[] if number else ["champion"]))
    protect(made, approvals=2)
    return made


def protect(registry: Registry, **options: object) -> None:
    rule = {"deltas": "acme/*", "aliases": ["champion"], **options}
    write_policy(registry.store, Policy.parse({"rules": [rule]}), ADMIN)


def by(registry: Registry, actor: Actor) -> Registry:
    return registry.acting(actor)


def test_a_move_is_made_by_its_last_approval_and_the_log_says_who_asked_and_who_approved(registry):
    document, request = ask(by(registry, ANN), X, "champion", "v2", "better on short texts")
    assert (request, document.aliases) == ("r1", {"champion": "v1"})
    assert approve(by(registry, BOB), X, "r1").aliases == {"champion": "v1"}
    document = approve(by(registry, CAT), X, "r1")
    move = document.log[-1]
    assert (document.aliases, document.requests) == ({"champion": "v2"}, {})
    assert (move.action, move.author, move.approved) == ("alias", "ann", ("bob", "cat"))
    assert (move.before, move.after, move.reason) == ("v1", "v2", "better on short texts")
    assert [(it.action, it.author) for it in document.log[-4:-1]] == [
        ("ask", "ann"),
        ("approve", "bob"),
        ("approve", "cat"),
    ]
    assert registry.document(X) == document


def test_nobody_approves_an_own_request_or_twice(registry):
    ask(by(registry, ANN), X, "champion", "v2", "why")
    with pytest.raises(RefusedMoveError, match="ann asked for it"):
        approve(by(registry, ANN), X, "r1")
    approve(by(registry, BOB), X, "r1")
    with pytest.raises(RefusedMoveError, match="bob approved it already"):
        approve(by(registry, BOB), X, "r1")
    with pytest.raises(RefusedMoveError, match="nobody"):
        approve(by(registry, NOBODY), X, "r1")
    assert registry.document(X).aliases == {"champion": "v1"}


def test_a_request_is_void_once_its_alias_moves_even_back_and_forth(registry):
    ask(by(registry, ANN), X, "champion", "v2", "why")
    ask(by(registry, ANN), X, "champion", "v3", "why")
    for actor in (BOB, CAT):
        approve(by(registry, actor), X, "r2")
    assert registry.document(X).requests == {}
    with pytest.raises(NotFoundError, match="void once its alias moves"):
        approve(by(registry, BOB), X, "r1")
    ask(by(registry, ANN), X, "champion", "v1", "back")
    for actor in (BOB, CAT):
        approve(by(registry, actor), X, "r3")
    with pytest.raises(NotFoundError):
        approve(by(registry, BOB), X, "r1")


def test_an_approval_that_loses_the_race_against_a_move_moves_nothing(registry, monkeypatch):
    ask(by(registry, ANN), X, "champion", "v2", "why")
    approve(by(registry, BOB), X, "r1")
    read, overtaking = Registry.read, iter([True])

    def overtaken(self, name):
        found = read(self, name)
        if next(overtaking, False):
            policy = read_policy(registry.store)
            write_policy(registry.store, Policy(), ADMIN)
            set_alias(registry, X, "champion", "v3")
            write_policy(registry.store, policy, ADMIN)
        return found

    monkeypatch.setattr(Registry, "read", overtaken)
    with pytest.raises(NotFoundError, match="r1"):
        approve(by(registry, CAT), X, "r1")
    assert registry.document(X).aliases == {"champion": "v3"}


def test_a_request_made_under_other_rules_is_void(registry):
    ask(by(registry, ANN), X, "champion", "v2", "why")
    protect(registry, approvals=1)
    with pytest.raises(RefusedMoveError, match="the rules changed"):
        approve(by(registry, BOB), X, "r1")
    reject(by(registry, ANN), X, "r1")
    ask(by(registry, ANN), X, "champion", "v2", "why")
    assert approve(by(registry, BOB), X, "r2").aliases == {"champion": "v2"}


def test_a_removed_version_is_not_promoted_by_its_request(registry):
    ask(by(registry, ANN), X, "champion", "v2", "why")
    remove(registry, X, "v2")
    with pytest.raises(NotFoundError):
        approve(by(registry, BOB), X, "r1")


def test_one_request_asks_for_a_move(registry):
    ask(by(registry, ANN), X, "champion", "v2", "why")
    with pytest.raises(InUseError, match="ann asked for this move already, in r1"):
        ask(by(registry, BOB), X, "champion", "v2", "why")
    with pytest.raises(InUseError, match="points to v1 already"):
        ask(by(registry, BOB), X, "champion", "v1", "why")
    with pytest.raises(ConfigError, match="needs no approval"):
        ask(by(registry, BOB), X, "beta", "v2", "why")
    with pytest.raises(RefusedMoveError, match="needs a reason"):
        ask(by(registry, BOB), X, "champion", "v3", " ")


def hide_by_a_branch(registry, folders, tmp_path):
    registry.update(X, lambda document: document.with_branch("champion", "v2", *registry.stamp()))


def delete_all(registry, folders, tmp_path):
    registry.update(X, lambda document: document.forgotten("2026-01-01T00:00:00Z"))


def moved(folders, tmp_path) -> Registry:
    """A registry without rules that knows the same delta, with another champion."""
    other = Registry(MemoryStore(), "other")
    for number in range(3):
        publish(other, publication(folders[number], aliases=["champion"]))
    return other


def import_it(registry, folders, tmp_path):
    export_bundle([(moved(folders, tmp_path), Reference(X).at("champion"))], tmp_path / "x.tar")
    import_bundle(tmp_path / "x.tar", registry)


def push_many_of_them(registry, folders, tmp_path):
    (result,) = publish_many(registry, [publication(folders[3], aliases=["champion"])])
    raise result


WAYS = {
    "alias": lambda registry, *_: set_alias(registry, X, "champion", "v2", reason="why"),
    "alias --remove": lambda registry, *_: set_alias(registry, X, "champion", None, reason="why"),
    "undo": lambda registry, *_: undo(registry, X, reason="why"),
    "push": lambda registry, folders, _: publish(
        registry, publication(folders[3], aliases=["champion"], message="why")
    ),
    "push many": push_many_of_them,
    "copy": lambda registry, folders, tmp: list(copy(moved(folders, tmp), registry)),
    "import": import_it,
    "rename": lambda registry, *_: rename(registry, Reference(X), Reference.parse("free/x")),
    "branch": hide_by_a_branch,
    "delete": delete_all,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_there_is_no_way_round_the_rules(registry, folders, tmp_path, way):
    before = registry.document(X)
    for actor in (ANN, Actor("ann")):
        with pytest.raises(RefusedMoveError):
            way(by(registry, actor), folders, tmp_path)
        assert registry.document(X) == before


def test_a_delta_is_not_renamed_into_a_protected_name_with_an_alias_of_its_own(registry, folders):
    free = DeltaPath("free/y")
    publish(registry, publication(folders[0], free, aliases=["champion"]))
    with pytest.raises(RefusedMoveError, match="its alias champion is protected"):
        rename(by(registry, ANN), Reference(free), Reference.parse("acme/y"))
    assert rename(by(registry, ADMIN), Reference(free), Reference.parse("acme/y")).name == "acme/y"


def test_an_old_name_leads_to_no_alias_that_was_moved_without_its_rules(registry, folders):
    publish(registry, publication(folders[0], DeltaPath("acme/new")))  # no alias yet, so anybody may rename it
    rename(by(registry, ANN), Reference.parse("acme/new"), Reference.parse("free/new"))
    with pytest.raises(RefusedMoveError):
        set_alias(by(registry, ANN), DeltaPath("free/new"), "champion", "v1")
    assert registry.document("acme/new").aliases == {}


def test_a_mirror_brings_no_name_that_leads_to_an_alias_moved_without_its_rules(registry, folders, tmp_path):
    there = moved(folders, tmp_path)
    rename(there, Reference(X), Reference.parse("free/y"))
    with pytest.raises(RefusedMoveError):
        list(copy(there, by(registry, ANN)))
    assert registry.document(X).aliases == {"champion": "v1"}


def test_an_old_name_that_leads_to_a_protected_alias_is_not_given_away(registry):
    rename(by(registry, ADMIN), Reference(X), Reference.parse("acme/y"))
    with pytest.raises(RefusedMoveError, match="its alias champion is protected"):
        reuse_name(by(registry, ANN), X, "2026-01-01T00:00:00Z")
    assert registry.document(X).name == "acme/y"


def test_other_aliases_and_deltas_move_freely(registry, folders):
    assert set_alias(by(registry, ANN), X, "beta", "v2").aliases["beta"] == "v2"
    publish(registry, publication(folders[0], DeltaPath("free/x"), aliases=["champion"]))
    publish(registry, publication(folders[3], message="no alias"))
    assert registry.document(X).aliases == {"champion": "v1", "beta": "v2"}


@pytest.mark.parametrize(
    ("people", "may", "may_not"),
    [
        ({"scopes": ["admin"]}, [ADMIN], [ANN, Actor("ann"), Actor("root")]),
        ({"names": ["ann"]}, [ANN, Actor("ann")], [ADMIN, BOB]),
        ({"scopes": ["admin"], "names": ["bob"]}, [ADMIN, BOB], [ANN]),
        ({}, [ANN, ADMIN, Actor("eve")], [NOBODY, Actor("ann", "read")]),
    ],
)
def test_only_the_movers_of_a_rule_move_its_aliases(registry, people, may, may_not):
    protect(registry, movers=people)
    for actor in may_not:
        with pytest.raises(RefusedMoveError, match="may make it, not"):
            set_alias(by(registry, actor), X, "champion", "v2", reason="why")
    for number, actor in enumerate(may):
        set_alias(by(registry, actor), X, "champion", f"v{number + 2}" if number < 2 else "v1", reason="why")


def test_a_reason_is_needed_unless_the_rule_says_otherwise(registry):
    protect(registry)
    with pytest.raises(RefusedMoveError, match="it needs a reason"):
        set_alias(by(registry, ANN), X, "champion", "v2")
    protect(registry, reason=False)
    assert set_alias(by(registry, ANN), X, "champion", "v2").aliases == {"champion": "v2"}


def test_a_rollback_needs_no_approval_where_the_rule_allows_it(registry):
    protect(registry, approvals=1, rollback=True, movers={"names": ["ann"]})
    ask(by(registry, ANN), X, "champion", "v2", "why")
    approve(by(registry, BOB), X, "r1")
    with pytest.raises(ApprovalNeededError):
        set_alias(by(registry, ANN), X, "champion", "v3", reason="why")
    ask(by(registry, ANN), X, "champion", "v1", "prepared")
    with pytest.raises(RefusedMoveError, match="only ann may make it"):
        undo(by(registry, BOB), X, "champion", reason="it fails")
    assert undo(by(registry, ANN), X, "champion", reason="it fails")[0].aliases == {"champion": "v1"}


def test_a_version_must_meet_the_conditions_of_a_rule(registry):
    backbone = registry.document(X).versions["v2"].summary["backbone_hash"]
    move = partial(set_alias, by(registry, ANN), X, "champion", "v2", reason="why")
    for options, fault in (
        ({"metrics": ["f1>=0.9"]}, "must have f1>=0.9, and its f1 is not known"),
        ({"fits": "0" * 32}, "must fit the backbone 0000"),
        ({"probe": True}, "nobody recorded that v2 gives the outputs"),
    ):
        protect(registry, **options)
        with pytest.raises(RefusedMoveError, match=fault):
            move()
    amend(registry, X, "v2", Amendment(metrics={"f1": 0.89}))
    protect(registry, metrics=["f1>=0.9"])
    with pytest.raises(RefusedMoveError, match=r"its f1 is 0\.89"):
        move()
    amend(registry, X, "v2", Amendment(metrics={"f1": 0.93}))
    record_probe(by(registry, BOB), X, "v2")
    protect(registry, metrics=["f1>=0.9"], probe=True, fits=backbone)
    assert move().aliases == {"champion": "v2"}


def test_a_version_must_be_signed_by_a_key_of_the_rule(registry, tmp_path):
    key = PrivateKey(new_key(tmp_path / "key.pem"))
    protect(registry, signed_by=[key.public.pem])
    move = partial(set_alias, by(registry, ANN), X, "champion", "v2", reason="why")
    with pytest.raises(RefusedMoveError, match="no valid signature by a key of the rule"):
        move()
    entry = registry.document(X).versions["v2"]
    manifest = registry.manifest(entry.digest).to_bytes()
    for version, signed in ((f"{X}@v3", False), (f"{X}@v2", True)):
        add_signature(registry, entry.digest, key.public.id, key.sign(manifest, version))
        if not signed:
            with pytest.raises(RefusedMoveError):
                move()
    assert move().aliases == {"champion": "v2"}


def test_conditions_hold_at_the_last_approval_too(registry):
    amend(registry, X, "v2", Amendment(metrics={"f1": 0.93}))
    protect(registry, metrics=["f1>=0.9"], approvals=1)
    ask(by(registry, ANN), X, "champion", "v2", "why")
    amend(registry, X, "v2", Amendment(metrics={"f1": 0.5}))
    with pytest.raises(RefusedMoveError, match=r"its f1 is 0\.5"):
        approve(by(registry, BOB), X, "r1")


def test_damaged_rules_stop_every_move_of_an_alias_and_nothing_else(registry, folders):
    stored, etag = registry.store.read_tagged(KEY)
    registry.store.swap(KEY, stored.replace(b'"approvals":2', b'"approvals":0'), etag)
    for alias in ("champion", "beta"):
        with pytest.raises(IntegrityError, match="rules of promotion"):
            set_alias(registry, X, alias, "v2", reason="why")
    publish(registry, publication(folders[3]))


def test_rules_are_changed_by_admins_and_the_log_says_who():
    store, policy = MemoryStore(), Policy.parse({"rules": [{"deltas": "*", "aliases": ["prod"]}]})
    assert write_policy(store, policy, Actor("ann"), "first").admins == ("ann",)
    for actor in (BOB, Actor("bob"), NOBODY):
        with pytest.raises(RefusedMoveError, match="is not an admin"):
            write_policy(store, Policy(), actor)
    with pytest.raises(ConflictError):
        write_policy(store, policy, ADMIN, expect="other")
    log = write_policy(store, policy, ADMIN, "second").log
    assert [(it["author"], it["reason"]) for it in log] == [("ann", "first"), ("root", "second")]


@pytest.mark.parametrize(
    "values",
    [
        [],
        {},
        {"rules": [{"aliases": ["prod"]}]},
        {"rules": [{"deltas": "acme", "aliases": ["prod"]}]},
        {"rules": [{"deltas": "*", "aliases": []}]},
        {"rules": [{"deltas": "*", "aliases": ["latest"]}]},
        {"rules": [{"deltas": "*", "aliases": ["prod"], "approval": 1}]},
        {"rules": [{"deltas": "*", "aliases": ["prod"], "metrics": ["f1"]}]},
        {"rules": [{"deltas": "*", "aliases": ["prod"], "signed_by": ["key"]}]},
        {"rules": [{"deltas": "*", "aliases": ["prod"], "movers": {"scopes": ["read"]}}]},
    ],
)
def test_rules_that_are_malformed_are_refused(values):
    with pytest.raises((ConfigError, ValueError)):
        Policy.parse(values)
