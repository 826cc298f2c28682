"""What a hub of the Hugging Face protocol answers when it refuses, as one sentence with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deltahub.errors import ConfigError, DeltaHubError, NotFoundError, NoVersionError, StorageError, UnreachableError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN"
BUSY: Final = frozenset({408, 429, 500, 502, 503, 504})  # statuses after which a call may be made again


def sentence(error: Exception, doing: str, what: str, place: str, *, token: bool) -> DeltaHubError | None:
    """An error of huggingface_hub as one of ours; None for one that says nothing about the hub.

    Args:
        doing: what was going on, e.g. ``"Pulling acme/ner"``.
        what: the delta that was asked for.
        place: the source, for people.
        token: whether a token was sent.
    """
    import httpx2  # late, as all of huggingface_hub: only who asks a hub needs it
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return _missing(error, doing, what, place, token=token) or _refused(error, doing, place, token=token)
    if isinstance(error, httpx2.TransportError):
        reason = "no answer in time" if isinstance(error, httpx2.TimeoutException) else str(error)
        return UnreachableError(f"{doing} failed in {place} ({reason}). Check the network and the address, and repeat.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        msg = f"{doing} failed in {place}: HF_HUB_OFFLINE was set when this process began. Unset it and begin anew."
        return UnreachableError(msg)
    if isinstance(error, ValueError) and "metadata" in str(error):
        return ConfigError(f"{doing} failed in {place}: it does not take the card's front matter. {error}")
    return None


def _missing(error: HfHubHTTPError, doing: str, what: str, place: str, *, token: bool) -> DeltaHubError | None:
    """What the hub does not have, or does not show; None for any other answer."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        remedy = f"Accept its conditions on its page, and {_LOG_IN}."
        return StorageError(f"{doing} failed in {place}: its owners let in only whom they know. {remedy}")
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "asked with your token" if token else f"asked without a token: if it is private, {_LOG_IN}"
        return NotFoundError(what, (f"{place}, {hint}",))
    if isinstance(error, errors.RevisionNotFoundError):
        return NoVersionError(what, (place,))
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return NotFoundError(what, (place,))
    return None


def _refused(error: HfHubHTTPError, doing: str, place: str, *, token: bool) -> StorageError:
    status, said = error.response.status_code, (error.server_message or "").strip().rstrip(".")
    if status == 401:
        remedy = (
            f"The token is not known there: {_LOG_IN} with a new one." if token else f"It wants a token: {_LOG_IN}."
        )
    elif status == 403:
        remedy = "This token has no right to that. Ask the owner of the namespace for it, or take another token."
    elif status == 429:
        remedy = "It takes no more requests for now. Repeat later; what is done already is not done again."
    elif status in BUSY:
        remedy = "The server fails or has too much to do, after several tries too. Repeat later."
    elif status in (413, 507):
        remedy = "It takes no more bytes from you. Ask for more room, or push a smaller delta."
    else:
        remedy = "Check the name and the address of the source."
    kind = UnreachableError if status in BUSY and status != 429 else StorageError
    return kind(f"{doing} failed in {place} ({f'{status}: {said}' if said else status}). {remedy}")
