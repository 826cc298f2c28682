"""Error messages for refusals of a Hugging Face hub: one sentence and a remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deltahub.errors import (
    ConfigError,
    DeltaHubError,
    IntegrityError,
    NotFoundError,
    NoVersionError,
    StorageError,
    UnreachableError,
)

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_DAMAGED: Final = "DataDamaged"  # the code of a hub of DeltaHub for stored bytes that are not the published ones
BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})  # statuses after which a call may be repeated


@dataclass(frozen=True)
class CallContext:
    """A call to a hub, described for error messages.

    Attributes:
        doing: the operation, e.g. ``"Pulling acme/ner"``.
        subject: the delta it is about.
        place: the source, for people.
        token: whether a token was sent.
        log_in: how to send another token, as a clause.
    """

    doing: str
    subject: str
    place: str
    token: bool
    log_in: str

    @property
    def failed(self) -> str:
        """The beginning of an error message."""
        return f"{self.doing} failed in {self.place}"


def is_damaged(error: HfHubHTTPError) -> bool:
    """Return whether a hub answered that what it stores is damaged, which does not pass."""
    return error.response.headers.get("x-error-code") == _DAMAGED


def sentence(error: Exception, attempt: CallContext) -> DeltaHubError | None:
    """Convert an error of huggingface_hub to one of DeltaHub's; return None if it is not about the hub."""
    import httpx2  # imported lazily, like huggingface_hub: only hubs need it
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return _not_found(error, attempt) or _refusal(error, attempt)
    if isinstance(error, httpx2.RequestError):  # no answer, an undecodable one, or a redirect loop
        reason = "no answer in time" if isinstance(error, httpx2.TimeoutException) else str(error).rstrip(".")
        return UnreachableError(f"{attempt.failed} ({reason}). Check the network and the address, and repeat.")
    if isinstance(error, TimeoutError):  # of our own: the answer as a whole
        return UnreachableError(f"{attempt.failed} (its answer has not ended: {error}). It is too slow: repeat later.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        msg = f"{attempt.failed}: HF_HUB_OFFLINE was set when this process began. Unset it and begin anew."
        return UnreachableError(msg)
    if isinstance(error, ValueError) and "metadata" in str(error):
        return ConfigError(f"{attempt.failed}: it does not take the card's front matter. {error}")
    return None


def _not_found(error: HfHubHTTPError, attempt: CallContext) -> DeltaHubError | None:
    """Convert the answer for a missing or hidden repo, revision or file; return None for any other error."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        remedy = f"Accept its conditions on its page, and {attempt.log_in}."
        return StorageError(f"{attempt.failed}: its owners restrict the access. {remedy}")
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = (
            "asked with your token" if attempt.token else f"asked without a token: if it is private, {attempt.log_in}"
        )
        return NotFoundError(attempt.subject, (f"{attempt.place}, {hint}",))
    if isinstance(error, errors.RevisionNotFoundError):
        return NoVersionError(attempt.subject, (attempt.place,))
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return NotFoundError(attempt.subject, (attempt.place,))
    return None


def _refusal(error: HfHubHTTPError, attempt: CallContext) -> DeltaHubError:
    if is_damaged(error):
        remedy = "Its administrator can repair it: deltahub verify --repair"
        return IntegrityError(attempt.subject, "the published bytes", f"others in {attempt.place}", remedy)
    status, answer = error.response.status_code, ". ".join((error.server_message or "").split("\n")).strip().rstrip(".")
    if status == 401:
        remedy = (
            f"The token is not known there: {attempt.log_in} with a new one."
            if attempt.token
            else f"It requires a token: {attempt.log_in}."
        )
    elif status == 403:
        remedy = (
            "This token lacks the permission for that. Ask the owner of the namespace for it, or take another token."
        )
    elif status == 429:
        remedy = "It takes no more requests for now. Repeat later; what is done already is not done again."
    elif status in BUSY:
        remedy = "The server fails or has too much to do, after several tries too. Repeat later."
    elif status in (413, 507):
        remedy = "It takes no more bytes from you. Ask for more room, or push a smaller delta."
    else:
        remedy = "Check the name and the address of the source."
    kind = UnreachableError if status in BUSY and status != 429 else StorageError
    return kind(f"{attempt.failed} ({f'{status}: {answer}' if answer else status}). {remedy}")
