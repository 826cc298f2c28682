"""The guard before every change of a registry: no document is swapped in which a protected alias moved against the rules.

It compares the document before and after, whatever made the change: an edit, a push, a copy, a bundle, or a client of a hub.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from deltahub.errors import ApprovalNeededError, RefusedMoveError
from deltahub.reference import Digest
from deltahub.registry.actor import Actor
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, MoveRequest
from deltahub.registry.metrics import Metric
from deltahub.registry.promotion.policy import Policy, Rule, digest_of, read_policy
from deltahub.registry.signatures import Stored, signatures
from deltahub.signing import PublicKey, trusted_signer
from deltahub.stores.base import object_key


def guard(registry: Stored, actor: Actor, before: ReferenceDocument, after: ReferenceDocument) -> None:
    """Refuse a change that moves a protected alias against the rules, or hides it behind a branch of its name.

    Raises:
        ApprovalNeededError: the move needs approvals that it does not have.
        RefusedMoveError: this one may not make it, it lacks a reason, or the version does not meet the rules.
        IntegrityError: the rules are damaged.
    """
    moved = _differing(before.aliases, after.aliases)
    branches = _differing(before.branches, after.branches)
    if not (moved or branches) or (policy := read_policy(registry.store)) is None:
        return
    for branch in branches:
        if policy.rules_for(after.names, branch):
            raise RefusedMoveError(
                f"The branch {branch} of {after.name}",
                "it has the name of a protected alias, which it would hide",
                "Choose another name for the branch.",
            )
    for alias in moved:
        if rules := policy.rules_for(after.names, alias):
            _MoveCheck(registry, policy, actor, before, after, alias, rules).require()


def guard_rename(registry: Stored, actor: Actor, document: ReferenceDocument, new: str) -> None:
    """Refuse the rename of a delta whose aliases are protected under its old name or the new one, but by an admin.

    Raises:
        RefusedMoveError: this one is not an admin.
    """
    if not (document.aliases or document.branches) or (policy := read_policy(registry.store)) is None:
        return
    names = (
        alias for alias in (*document.aliases, *document.branches) if policy.rules_for({*document.names, new}, alias)
    )
    if (alias := next(names, None)) and not policy.is_admin(actor):
        raise RefusedMoveError(
            f"The rename of {document.name} to {new}", f"its alias {alias} is protected", "Ask an admin to rename it."
        )


def require_move(
    registry: Stored, policy: Policy, actor: Actor, document: ReferenceDocument, request: MoveRequest
) -> None:
    """Refuse a request for a move that the rules would not allow with all approvals.

    Raises:
        RefusedMoveError: this one may not ask for it, it lacks a reason, or the version does not meet the rules.
    """
    rules = policy.rules_for(document.names, request.alias)
    after = document.with_alias(request.alias, request.after, request.time, actor.name, request.reason)
    _MoveCheck(registry, policy, actor, document, after, request.alias, rules).require_all_but_approvals()


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    if before == after:
        return []
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _says_something(reason: str) -> bool:
    """Return whether a reason has a visible character."""
    return any(unicodedata.category(letter)[0] not in "CMZ" for letter in reason)


class _MoveCheck:
    """One move of a protected alias, and the rules for it."""

    def __init__(
        self,
        registry: Stored,
        policy: Policy,
        actor: Actor,
        before: ReferenceDocument,
        after: ReferenceDocument,
        alias: str,
        rules: tuple[Rule, ...],
    ) -> None:
        self._registry, self._policy, self._actor = registry, policy, actor
        self._before, self._after, self._alias, self._rules = before, after, alias, rules
        self._old, self._new = before.aliases.get(alias), after.aliases.get(alias)
        self._request = self._matching_request()

    @property
    def _subject(self) -> str:
        return f"The move of {self._after.name}@{self._alias} from {self._old or 'nothing'} to {self._new or 'nothing'}"

    def require(self) -> None:
        """Refuse the move unless it meets every rule."""
        self.require_all_but_approvals()
        needed = max((rule.approvals for rule in self._rules if not self._is_rollback(rule)), default=0)
        given = self._approvals()
        if len(given) < needed:
            name, version = self._after.name, f"@{self._new}" if self._new else ""
            remedy = "Ask for it: deltahub alias"
            option = " --remove" if self._new is None else ""
            raise ApprovalNeededError(
                self._subject,
                f"{needed} {'other must' if needed == 1 else 'others must'} approve it, and {len(given)} did",
                f"{remedy} {name}{version} {self._alias}{option} --ask -m REASON",
            )

    def require_all_but_approvals(self) -> None:
        """Refuse the move unless who makes it, its reason and its version meet every rule."""
        for rule in self._rules:
            if self._request is None and not self._policy.includes(rule.movers, self._actor):
                raise self._refused(f"only {rule.movers} may make it, not {self._actor.name}", "Ask one of them.")
            if rule.reason and not _says_something(self._reason()):
                raise self._refused("it needs a reason", "Give one: deltahub alias ... -m REASON")
            if self._new is not None and (fault := self._fault(rule, self._new)):
                raise self._refused(fault, "Choose another version, or mend this one.")

    def _refused(self, why: str, remedy: str) -> RefusedMoveError:
        return RefusedMoveError(self._subject, why, remedy)

    def _matching_request(self) -> MoveRequest | None:
        """Return the request for exactly this move, under these rules, that this change approves; None for any other change."""
        if not self._added_approvals():
            return None
        exact = (self._alias, self._old, self._new, digest_of(self._rules))
        requests = self._before.requests.values()
        return next((it for it in requests if (it.alias, it.before, it.after, it.rules) == exact), None)

    def _approvals(self) -> set[str]:
        """Return who approved the move, with the approval that this very change adds."""
        if self._request is None:
            return set()
        return {*self._request.approved, *self._added_approvals()} - {self._request.author}

    def _added_approvals(self) -> set[str]:
        exact = ("approve", self._alias, self._old, self._new)
        moves = self._new_moves()
        return {move.author for move in moves if (move.action, move.what, move.before, move.after) == exact}

    def _reason(self) -> str:
        if self._request:
            return self._request.reason
        moves = (move for move in self._new_moves() if move.what == self._alias)
        return next((move.reason for move in moves if move.action in ("alias", "unalias", "undo")), "").strip()

    def _new_moves(self) -> tuple[Move, ...]:
        return self._after.log[len(self._before.log) :]

    def _is_rollback(self, rule: Rule) -> bool:
        last = self._before.last_alias_move(self._alias)
        return rule.rollback and last is not None and last.before == self._new

    def _fault(self, rule: Rule, version: str) -> str | None:
        """Return what the version lacks, as a clause; None if it meets the rule."""
        entry = self._after.versions[version]
        metrics = entry.summary.get("metrics", {})
        for text in rule.metrics:
            condition = Metric.parse(text)
            if not condition.holds(metrics.get(condition.name)):
                return f"{version} must have {text}, and its {condition.name} is {metrics.get(condition.name, 'not known')}"
        if rule.fits and entry.summary.get("backbone_hash") != rule.fits:
            return f"{version} must fit the backbone {rule.fits}, and was trained on {entry.summary.get('backbone_hash', 'one that is not known')}"
        if rule.probe and not any((move.action, move.what) == ("verify", version) for move in self._before.log):
            return f"nobody recorded that {version} gives the outputs saved with it (deltahub verify --probe --record)"
        if rule.signed_by and not self._is_signed(rule, entry.digest, version):
            return f"{version} has no valid signature by a key of the rule"
        return None

    def _is_signed(self, rule: Rule, digest: Digest, version: str) -> bool:
        keys = {key.id: key for key in (PublicKey.parse(pem.encode(), "A rule") for pem in rule.signed_by)}
        manifest = self._registry.store.read(object_key(digest.hex))
        claims = signatures(self._registry, digest)
        return trusted_signer(manifest, claims, keys, f"{self._after.name}@{version}") is not None
