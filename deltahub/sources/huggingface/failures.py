"""Error messages for refusals of a Hugging Face hub: one sentence and a remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deltahub.errors import ConfigError, DeltaHubError, NotFoundError, NoVersionError, StorageError, UnreachableError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})  # statuses after which a call may be repeated


@dataclass(frozen=True)
class Asked:
    """A call to a hub, described for error messages.

    Attributes:
        doing: the operation, e.g. ``"Pulling acme/ner"``.
        what: the delta it is about.
        place: the source, for people.
        token: whether a token was sent.
        log_in: how to send another token, as a clause.
    """

    doing: str
    what: str
    place: str
    token: bool
    log_in: str

    @property
    def failed(self) -> str:
        """The beginning of an error message."""
        return f"{self.doing} failed in {self.place}"


def sentence(error: Exception, asked: Asked) -> DeltaHubError | None:
    """Convert an error of huggingface_hub to one of DeltaHub's; return None if it is not about the hub."""
    import httpx2  # imported lazily, like huggingface_hub: only hubs need it
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return _missing(error, asked) or _refused(error, asked)
    if isinstance(error, httpx2.RequestError):  # no answer, an undecodable one, or a redirect loop
        reason = "no answer in time" if isinstance(error, httpx2.TimeoutException) else str(error).rstrip(".")
        return UnreachableError(f"{asked.failed} ({reason}). Check the network and the address, and repeat.")
    if isinstance(error, TimeoutError):  # of our own: the answer as a whole
        return UnreachableError(f"{asked.failed} (its answer has not ended: {error}). It is too slow: repeat later.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        msg = f"{asked.failed}: HF_HUB_OFFLINE was set when this process began. Unset it and begin anew."
        return UnreachableError(msg)
    if isinstance(error, ValueError) and "metadata" in str(error):
        return ConfigError(f"{asked.failed}: it does not take the card's front matter. {error}")
    return None


def _missing(error: HfHubHTTPError, asked: Asked) -> DeltaHubError | None:
    """Convert the answer for a missing or hidden repo, revision or file; return None for any other error."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        remedy = f"Accept its conditions on its page, and {asked.log_in}."
        return StorageError(f"{asked.failed}: its owners restrict the access. {remedy}")
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "asked with your token" if asked.token else f"asked without a token: if it is private, {asked.log_in}"
        return NotFoundError(asked.what, (f"{asked.place}, {hint}",))
    if isinstance(error, errors.RevisionNotFoundError):
        return NoVersionError(asked.what, (asked.place,))
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return NotFoundError(asked.what, (asked.place,))
    return None


def _refused(error: HfHubHTTPError, asked: Asked) -> StorageError:
    status, said = error.response.status_code, ". ".join((error.server_message or "").split("\n")).strip().rstrip(".")
    if status == 401:
        remedy = (
            f"The token is not known there: {asked.log_in} with a new one."
            if asked.token
            else f"It requires a token: {asked.log_in}."
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
    return kind(f"{asked.failed} ({f'{status}: {said}' if said else status}). {remedy}")
