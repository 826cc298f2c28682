"""The rules of promotion of a registry: which aliases are protected, who moves them, and what must hold before.

They are one document in the store, `promotion/rules.json`, so that a hub and the library in any process read the same. A hub lets
tokens of scope admin change it; in a process, those whom it lists as admins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from deltahub.errors import ConfigError, ConflictError, RefusedMoveError
from deltahub.files.documents import canonical_json, parse_stored, with_checksum
from deltahub.reference import LATEST, MAIN, as_delta_path, check_alias, check_name
from deltahub.registry import stamps
from deltahub.registry.actor import IN_PROCESS, Actor
from deltahub.registry.hub_records import PROMOTION, SCHEMA_VERSION
from deltahub.registry.metrics import Metric
from deltahub.signing import PublicKey
from deltahub.stores.base import Store

KEY: Final = f"{PROMOTION.prefix}rules.json"
MOST_APPROVALS: Final = 20
_MOST_RULES: Final = 200
_MOST_CHANGES: Final = 1000  # in the log of the document
_RANKS: Final = {"none": 0, "read": 1, "write": 2, "admin": 3}


@dataclass(frozen=True)
class People:
    """A group of people and programs; one without scopes and names is everybody who may write.

    Attributes:
        scopes: ``"write"`` or ``"admin"``: the tokens of this scope, or of a higher one.
        names: of tokens, or of users in a process.
    """

    scopes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        groups = [*(f"tokens of scope {scope}" for scope in self.scopes), *self.names]
        return ", ".join(groups) or "all who may write"


@dataclass(frozen=True)
class Rule:
    """One rule; a move of an alias must meet every rule for it.

    Attributes:
        deltas: ``"acme/sst2"``, ``"acme/*"`` or ``"*"``.
        aliases: the protected aliases.
        movers: who may move them, or ask for a move.
        reason: whether a move needs a reason.
        approvals: how many others must approve.
        approvers: who may approve.
        rollback: whether a move back to where the alias pointed before its last move needs no approval.
        metrics: conditions on the version, such as ``"accuracy>=0.9"``.
        signed_by: public keys in PEM, one of which must have signed the version.
        probe: whether somebody must have recorded that the version gives the outputs saved with it.
        fits: the fingerprint of the backbone that the version must have been trained on.
    """

    deltas: str
    aliases: tuple[str, ...]
    movers: People = People()
    reason: bool = True
    approvals: int = 0
    approvers: People = People()
    rollback: bool = False
    metrics: tuple[str, ...] = ()
    signed_by: tuple[str, ...] = ()
    probe: bool = False
    fits: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rule:
        """Build a rule from its stored form."""
        lists = {key: tuple(values[key]) for key in ("aliases", "metrics", "signed_by") if key in values}
        people = {
            key: People(tuple(values[key].get("scopes", ())), tuple(values[key].get("names", ())))
            for key in ("movers", "approvers")
            if key in values
        }
        return cls(**{**values, **lists, **people})

    def covers(self, path: str, alias: str) -> bool:
        """Return whether the rule is about an alias of a delta; names count in any case."""
        namespace, _, name = self.deltas.lower().partition("/")
        its_namespace, _, its_name = path.lower().partition("/")
        return alias in self.aliases and (
            self.deltas == "*" or (namespace == its_namespace and name in ("*", its_name))
        )

    def check(self) -> None:
        """Refuse a rule that could never be met as written.

        Raises:
            ConfigError: a pattern, a metric or a key is malformed.
            ReferenceSyntaxError: an alias is.
        """
        namespace, _, name = self.deltas.partition("/")
        if (
            self.deltas != "*"
            and not (name == "*" and check_name(namespace, "namespace"))
            and not as_delta_path(self.deltas)
        ):
            msg = f"{self.deltas!r} does not say which deltas: expected '*', 'namespace/*' or 'namespace/name'."
            raise ConfigError(msg)
        for alias in self.aliases:
            if check_alias(alias) in (LATEST, MAIN):
                msg = f"{alias!r} always means the newest version and cannot be protected. Protect an alias."
                raise ConfigError(msg)
        for text in self.metrics:
            Metric.parse(text)
        for pem in self.signed_by:
            PublicKey.parse(pem.encode(), "A rule")


@dataclass(frozen=True)
class Policy:
    """All rules of a registry.

    Attributes:
        rules: each protects aliases.
        admins: names of users who may change the rules in a process, without a hub.
        log: who changed the rules, oldest first: ``time``, ``author`` and ``reason``.
    """

    rules: tuple[Rule, ...] = ()
    admins: tuple[str, ...] = ()
    log: tuple[Mapping[str, str], ...] = field(default=(), compare=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Build the policy from its stored form."""
        rules = tuple(map(Rule.from_dict, values.get("rules", ())))
        return cls(rules, tuple(values.get("admins", ())), tuple(values.get("log", ())))

    @classmethod
    def parse(cls, values: Any) -> Policy:
        """Check and build a policy that a person wrote: its rules and admins.

        Raises:
            ConfigError: it is not a policy; the message names the first fault.
        """
        written = values if isinstance(values, dict) else {}
        document = {"schema_version": SCHEMA_VERSION, "key": KEY, "log": [], **written}
        _, wrong = parse_stored(with_checksum(document), PROMOTION.schema)
        if wrong is None and len(written["rules"]) > _MOST_RULES:
            wrong = f"{len(written['rules'])} rules"
        if wrong or not isinstance(values, dict):
            msg = f"These are not rules of promotion: {wrong or 'not an object'}. Expected an object with 'rules', see docs/promotion.md."
            raise ConfigError(msg)
        policy = cls.from_dict(written)
        for rule in policy.rules:
            rule.check()
        return replace(policy, log=())

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as it is stored, in types of JSON alone."""
        rules = [{key: value for key, value in asdict(rule).items() if value is not None} for rule in self.rules]
        return {"rules": rules, "admins": list(self.admins), "log": list(self.log)}

    def rules_for(self, paths: Collection[str], alias: str) -> tuple[Rule, ...]:
        """Return the rules for an alias of a delta.

        Args:
            paths: every name that leads to the delta, ``"namespace/name"``.
        """
        return tuple(rule for rule in self.rules if any(rule.covers(path, alias) for path in paths))

    def is_admin(self, actor: Actor) -> bool:
        """Return whether somebody may change the rules, and rename deltas with protected aliases."""
        return actor.scope == "admin" or (actor.scope == IN_PROCESS and actor.name in self.admins)

    def includes(self, people: People, actor: Actor) -> bool:
        """Return whether somebody belongs to a group."""
        rank = 3 if self.is_admin(actor) else 2 if actor.scope == IN_PROCESS else _RANKS[actor.scope]
        if not people.scopes and not people.names:
            return rank >= _RANKS["write"]
        return actor.name in people.names or any(rank >= _RANKS[scope] for scope in people.scopes)


def digest_of(rules: tuple[Rule, ...]) -> str:
    """Return the sha256 of rules, 64 hex digits: requests made under other rules are void."""
    return hashlib.sha256(canonical_json([asdict(rule) for rule in rules])).hexdigest()


def read_policy(store: Store) -> Policy | None:
    """Return the rules of a registry; None if it has none.

    Raises:
        IntegrityError: they are damaged. Nothing that they may protect can be moved until they are mended.
        StorageError: the store is out of reach.
    """
    tagged = read_tagged(store)
    return tagged[0] if tagged else None


def read_tagged(store: Store) -> tuple[Policy, str] | None:
    """Return the rules of a registry and their etag; None if it has none."""
    stored = PROMOTION.read(store, KEY)
    return (Policy.from_dict(stored[0]), stored[1]) if stored else None


def write_policy(store: Store, policy: Policy, actor: Actor, reason: str = "", expect: str | None = None) -> Policy:
    """Replace the rules of a registry, and record who did.

    Args:
        expect: the etag of the rules that were read before, ``"none"`` if there were none; None for any.

    Returns:
        The rules as stored. The first ones that are written in a process have their author as an admin.

    Raises:
        RefusedMoveError: this one may not change them.
        ConflictError: they changed meanwhile.
    """
    tagged = read_tagged(store)
    now, etag = tagged or (None, None)
    if expect is not None and expect != (etag or "none"):
        raise ConflictError("The rules of promotion", "those that were read before", "others")
    by_process = now is None and actor.scope == IN_PROCESS
    if not (by_process or (now or policy).is_admin(actor)):
        admins = ", ".join(now.admins) if now and now.admins else "none in a process"
        raise RefusedMoveError(
            "A change of the rules of promotion",
            f"{actor.name} is not an admin",
            f"Tokens of scope admin may change them behind a hub; {admins}.",
        )
    if by_process and actor.name not in policy.admins:
        policy = replace(policy, admins=(*policy.admins, actor.name))
    entry = {"time": stamps.now(), "author": actor.name, "reason": stamps.text(reason)}
    stored = replace(policy, log=(*(now.log if now else ()), entry)[-_MOST_CHANGES:])
    PROMOTION.write(store, KEY, stored.to_dict(), etag)
    return stored
