"""The exceptions that DeltaHub raises on purpose.

    DeltaHubError
    ├── ConfigError               an option is unknown, has the wrong type or an invalid value
    ├── AddressError              a module name cannot be used
    │   ├── NoMatchError          a pattern matches no module
    │   └── TargetError           a module cannot hold this delta
    ├── NothingChosenError        the picker page was closed or cancelled
    ├── MergeError                a delta cannot be merged into the backbone's weights, or is merged already
    ├── RouteError                rows of a batch cannot go through the requested deltas
    ├── CheckpointError           a folder is not a delta, or its tensors do not fit
    │   ├── MissingFolderError    a named folder does not exist
    │   └── PickleRefusedError    the weights are a pickle, and the caller did not allow it
    ├── IntegrityError            bytes are not the ones that were published
    │   └── SignatureError        a delta has no valid signature by a trusted key
    ├── FingerprintMismatch       the backbone is not the one the delta was trained on
    ├── ReferenceSyntaxError      a name, version, alias or tag is not well formed
    ├── NotFoundError             nothing is known under a reference
    │   ├── RemovedError          the version was removed on purpose
    │   ├── NoVersionError        the delta exists, but not this version
    │   ├── NotLockedError        the lock file does not contain the reference
    │   └── NotCachedError        the network may not be used, and the delta is not on this machine
    ├── InUseError                something else still needs the object to be removed or replaced
    ├── ConflictError             the state is not as expected, for example after a concurrent change
    ├── RefusedMoveError          the rules of promotion do not allow this move of an alias
    │   └── ApprovalNeededError   they allow it once others have approved it
    └── StorageError              the disk is full, read-only or unreachable
        ├── MissingFileError      a named file does not exist
        └── UnreachableError      a server gave no answer

A call raises its error. A call on many items returns the `Outcome` of each instead: its result, or the error that stopped it.

Each message states the expected value, the found value and a remedy. All fields are in `args`, so every error pickles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

from deltahub.text.visible import visible

T = TypeVar("T")


class DeltaHubError(Exception):
    """Base class of every error that this library raises on purpose.

    Its text is safe to print: control characters in quoted names and answers of servers are escaped.
    """

    def __str__(self) -> str:
        return visible(self._sentence())

    def _sentence(self) -> str:
        """Return the message before escaping."""
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class ConfigError(DeltaHubError, ValueError):
    """An option is unknown, has the wrong type or an invalid value."""


class AddressError(DeltaHubError, ValueError):
    """A module name cannot be used as the place of a delta."""


class NoMatchError(AddressError):
    """A pattern matches no module of the backbone.

    Attributes:
        pattern: the pattern as given.
        nearest: similar names, best first.
    """

    def __init__(self, pattern: str, nearest: tuple[str, ...], hint: str = "") -> None:
        super().__init__(pattern, nearest, hint)
        self.pattern, self.nearest, self.hint = pattern, nearest, hint

    def _sentence(self) -> str:
        names = ", ".join(self.nearest)
        close = f" The nearest names are: {names}." if names else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"No module matches {self.pattern!r}.{close}{hint}"


class TargetError(AddressError):
    """A module was found but cannot hold this delta."""


class NothingChosenError(DeltaHubError):
    """The user chose no modules on the picker page.

    Attributes:
        why: the reason, e.g. ``"its page was closed"``.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def _sentence(self) -> str:
        return (
            f"No module was chosen: {self.why}. Nothing was changed. Choose again, or pass modified_modules=[...] "
            "with names that `deltahub inspect` shows."
        )


class MergeError(DeltaHubError):
    """A delta cannot be merged into the backbone's weights, or is merged already."""


class RouteError(DeltaHubError, ValueError):
    """The rows of a batch cannot go through the requested deltas."""


class CheckpointError(DeltaHubError):
    """A folder is not a delta checkpoint, or its tensors do not fit the delta in its config."""


class MissingFolderError(CheckpointError):
    """A named folder does not exist."""


class PickleRefusedError(CheckpointError):
    """The weights are a Python pickle, which can run code, and the caller did not allow it."""


class IntegrityError(DeltaHubError):
    """The bytes found are not the bytes that were saved or published.

    Attributes:
        what: the file or object, in the user's terms.
        expected: the recorded value, e.g. ``"sha256:9f2c..."`` or ``"5242880 bytes"``.
        found: the actual value.
    """

    def __init__(self, what: str, expected: str, found: str, remedy: str = "") -> None:
        super().__init__(what, expected, found, remedy)
        self.what, self.expected, self.found, self.remedy = what, expected, found, remedy

    def _sentence(self) -> str:
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{self.what} is damaged: expected {self.expected}, found {self.found}.{remedy}"


class SignatureError(IntegrityError):
    """The delta has no valid signature by a trusted key, and one is required.

    Attributes:
        what: the delta.
        why: the reason, as a clause.
        trusted: the ids of the trusted keys.
    """

    def __init__(self, what: str, why: str, trusted: tuple[str, ...] = ()) -> None:
        DeltaHubError.__init__(self, what, why, trusted)
        self.what, self.why, self.trusted = what, why, trusted
        self.expected = f"a signature by {' or '.join(key_id[:16] for key_id in trusted)}"
        self.found, self.remedy = why, "Ask the owner of such a key to check and sign it: deltahub sign REF --key KEY"

    def _sentence(self) -> str:
        return f"{self.what} is refused: expected {self.expected}, and {self.why}. {self.remedy}"


class FingerprintMismatch(DeltaHubError):
    """The given backbone is not the one that this delta was trained on.

    Attributes:
        level: the kind of difference, e.g. ``"same structure, other weights"``.
        difference: a description of the tensors that differ.
        expected: the fingerprint recorded with the delta.
        found: the fingerprint of the given backbone.
    """

    def __init__(self, level: str, difference: str, expected: str, found: str) -> None:
        super().__init__(level, difference, expected, found)
        self.level, self.difference, self.expected, self.found = level, difference, expected, found

    def _sentence(self) -> str:
        structure = ' check_hash="structure" to accept other weights of the same shape, or' if self.soft else ""
        if self.level == "other quantisation":
            structure = f' check_hash="dequantised" (deltahub check: --dequantised) to compare the weights after dequantisation,{structure}'
        return (
            f"This delta was trained on another backbone ({self.level}): {self.difference}. "
            f"Expected fingerprint {self.expected}, found {self.found}. "
            f"Load the backbone that the delta was trained on, or pass{structure} check_hash=False to attach it anyway (deltahub convert: --no-check-hash)."
        )

    @property
    def soft(self) -> bool:
        """Whether only values differ: every tensor has the expected name and shape."""
        return self.level in ("same structure, other weights", "other precision", "other quantisation")


class ProbeError(DeltaHubError):
    """A loaded delta does not give the outputs that it gave when it was saved.

    Attributes:
        difference: a description of the difference.
    """

    def __init__(self, difference: str) -> None:
        super().__init__(difference)
        self.difference = difference

    def _sentence(self) -> str:
        return (
            f"The delta does not act as it did when it was saved: {self.difference}. Load it on the backbone that it was trained "
            "on, in its precision, with the releases that saved it."
        )


class VerificationError(DeltaHubError):
    """A converted delta does not give the outputs of its source; it was not written."""


class ReferenceSyntaxError(DeltaHubError, ValueError):
    """A name, version, alias, tag or reference is not well formed."""


class NotFoundError(DeltaHubError, LookupError):
    """Nothing is known under a reference.

    Attributes:
        what: the requested reference.
        looked_in: the places searched, in order.
        nearest: similar names, best first.
    """

    def __init__(self, what: str, looked_in: tuple[str, ...] = (), nearest: tuple[str, ...] = ()) -> None:
        super().__init__(what, looked_in, nearest)
        self.what, self.looked_in, self.nearest = what, looked_in, nearest

    def _sentence(self) -> str:
        places = f" Looked in: {'; '.join(self.looked_in)}." if self.looked_in else ""
        close = f" The nearest names are: {', '.join(self.nearest)}." if self.nearest else ""
        return f"{self.what} was not found.{places}{close}"


class RemovedError(NotFoundError):
    """A version existed and was removed on purpose.

    Attributes:
        what: the version.
        time: the time of the removal, ISO 8601 in UTC.
        author: the author of the removal.
        message: the reason; empty if the author gave none.
        left: the remaining versions.
    """

    def __init__(self, what: str, time: str, author: str, message: str = "", left: tuple[str, ...] = ()) -> None:
        DeltaHubError.__init__(self, what, time, author, message, left)
        self.what, self.time, self.author, self.message, self.left = what, time, author, message, left
        self.looked_in, self.nearest = (), left

    def _sentence(self) -> str:
        why = f": {self.message}" if self.message else ""
        remainder = f"Still there: {', '.join(self.left)}." if self.left else "No version is left."
        return f"{self.what} was removed at {self.time} by {self.author}{why}. {remainder}"


class NoVersionError(NotFoundError):
    """A delta exists, but not the requested version, alias or digest; no other source is searched for it."""


class NotLockedError(NotFoundError):
    """A reference is not in the lock file in use.

    Attributes:
        what: the reference.
        lock: the lock file.
        locked: its references with the same name, or else all its references.
    """

    def __init__(self, what: str, lock: str, locked: tuple[str, ...] = ()) -> None:
        DeltaHubError.__init__(self, what, lock, locked)
        self.what, self.lock, self.locked = what, lock, locked
        self.looked_in, self.nearest = (lock,), locked

    def _sentence(self) -> str:
        holds = f"It holds {', '.join(self.locked)}. " if self.locked else "It is empty. "
        return (
            f"{self.what} is not locked in {self.lock}. {holds}"
            f"Add it with `deltahub lock --add {self.what} -o {self.lock}`, or unset DELTAHUB_LOCK."
        )


class NotCachedError(NotFoundError):
    """The network may not be used, and the requested delta is not on this machine.

    Attributes:
        what: the reference.
        looked_in: the places searched.
        nearest: deltas on this machine with similar names, as references that load.
        pull: the reference to pull beforehand with a network.
        why: the reason for not using the network, e.g. ``"DELTAHUB_OFFLINE is set"``.
    """

    def __init__(self, what: str, looked_in: tuple[str, ...], nearest: tuple[str, ...], pull: str, why: str) -> None:
        DeltaHubError.__init__(self, what, looked_in, nearest, pull, why)
        self.what, self.looked_in, self.nearest, self.pull, self.why = what, looked_in, nearest, pull, why

    def _sentence(self) -> str:
        return (
            f"{super()._sentence()} {self.why}, so no other source was asked. "
            f"Pull it beforehand where there is a network: deltahub pull {self.pull}"
        )


class InUseError(DeltaHubError):
    """Something else still needs the object to be removed or replaced; nothing was changed.

    Attributes:
        what: the object to be removed or replaced.
        user: its user, as a clause.
        remedy: how to proceed.
    """

    def __init__(self, what: str, user: str, remedy: str) -> None:
        super().__init__(what, user, remedy)
        self.what, self.user, self.remedy = what, user, remedy

    def _sentence(self) -> str:
        return f"{self.what} stays as it is: {self.user}. {self.remedy}"


class ConflictError(DeltaHubError):
    """The state is not as expected, for example after a concurrent change; nothing was overwritten."""

    def __init__(self, what: str, expected: str | None, found: str | None) -> None:
        super().__init__(what, expected, found)
        self.what, self.expected, self.found = what, expected, found

    def _sentence(self) -> str:
        return (
            f"{self.what}: expected {self.expected or 'no entry'}, found {self.found or 'no entry'}. "
            "It may have been changed concurrently; nothing was overwritten. Check it and repeat."
        )


class RefusedMoveError(DeltaHubError):
    """The rules of promotion do not allow this move of a protected alias; nothing was changed.

    Attributes:
        what: the move, e.g. ``"acme/ner@champion: v2 -> v3"``.
        why: the reason, as a clause.
        remedy: how to proceed.
    """

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(what, why, remedy)
        self.what, self.why, self.remedy = what, why, remedy

    def _sentence(self) -> str:
        return f"{self.what} is refused: {self.why}. {self.remedy}"


class ApprovalNeededError(RefusedMoveError):
    """The rules of promotion allow this move of a protected alias once others have approved it; nothing was changed."""


class StorageError(DeltaHubError, OSError):
    """The disk is full, read-only or unreachable; no partial write is left."""

    def _sentence(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingFileError(StorageError):
    """A named file, such as a key or a lock file, does not exist."""


class UnreachableError(StorageError):
    """A server gave no answer: the network is down, the name is unknown, the connection is refused or times out."""


Outcome: TypeAlias = T | DeltaHubError


def outcome(call: Callable[[], T]) -> Outcome[T]:
    """Return the result of a call for one of many items, or its error."""
    try:
        return call()
    except DeltaHubError as error:
        return error
