"""Errors of a bucket's server or of the connection to it, as one sentence with a remedy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from deltahub.errors import StorageError, UnreachableError

if TYPE_CHECKING:
    from deltahub.stores.bucket import Bucket

_STATUS: Final = re.compile(r"status code: (\d{3})")
_REPEATED: Final = re.compile(r"after [1-9]\d* retries")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_ROAD: Final = re.compile(
    r"dns error|Connection refused|Connection reset|certificate|TimedOut|timed out|unreachable", re.IGNORECASE
)
_MACHINE: Final = (
    "169.254.169.254"  # the metadata service of a cloud machine, asked for credentials when there are no others
)

_NO_CREDENTIALS: Final = "No credentials were found. {sign_in}"
_UNKNOWN: Final = "The server does not know these credentials. Check {keys}."
_EXPIRED: Final = "The credentials have expired. Sign in again and repeat."
_REGION: Final = "The bucket is in another region. Name it with --region or AWS_REGION."
_FULL: Final = "No space is left there. Free some and repeat; nothing was half written."
_BUSY: Final = (
    "The server fails or has too much to do, after several tries too. Repeat later; nothing was half written."
)
_FORBIDDEN: Final = "You may not {right} there. Ask its owner for the right, or choose another registry."
_UNREACHED: Final = "The server cannot be reached. Check the network and the address of the server, and repeat."
_OTHER: Final = "Check the address of the registry and of the server, and repeat."
_UNKNOWN_KEYS: Final = (
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure"),
    *("AuthenticationFailed", "InvalidAuthenticationInfo", "InvalidSecurity", "AuthenticationRequired"),
)
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound")
_BY_CODE: Final = {
    **dict.fromkeys(
        _NO_BUCKET, "The bucket {bucket!r} does not exist there. Create it, or correct the address of the registry."
    ),
    "RequestTimeTooSkewed": "This machine's clock is wrong. Set it and repeat.",
    **dict.fromkeys(_UNKNOWN_KEYS, _UNKNOWN),
    **dict.fromkeys(("ExpiredToken", "TokenRefreshRequired"), _EXPIRED),
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed"), _REGION),
    **dict.fromkeys(("InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"), _FULL),
}
_DOWN: Final = frozenset({500, 502, 503, 504})  # after retries, these count as unreachable
_BY_STATUS: Final = {
    401: _UNKNOWN,
    403: _FORBIDDEN,
    507: _FULL,
    **dict.fromkeys((429, 500, 502, 503, 504), _BUSY),
}


@contextlib.contextmanager
def bucket_errors(doing: str, bucket: Bucket, right: str = "write") -> Iterator[None]:
    """Turn errors of obstore into one sentence; a missing key stays a FileNotFoundError.

    Args:
        doing: the action under way, e.g. ``"Reading the registry"``.
        right: the right that it needs, in one word.
    """
    from obstore.exceptions import BaseError  # late: no other store needs it

    try:
        yield
    except FileNotFoundError as error:
        if code_of(error) in _NO_BUCKET:
            raise _sentence(error, doing, bucket, right) from error
        raise
    except BaseError as error:
        raise _sentence(error, doing, bucket, right) from error


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of the answer; None if there was no answer."""
    match = _STATUS.search(str(error))
    return int(match[1]) if match else None


def code_of(error: Exception) -> str:
    """Return the server's code of the error, e.g. ``"NoSuchBucket"``; empty if it sent none."""
    match = _CODE.search(str(error))
    return match[1] if match else ""


def is_unanswered(error: Exception) -> bool:
    """Check whether a request may have been carried out though its answer did not arrive."""
    return status_of(error) is None and _MACHINE not in str(error)


def was_retried(error: Exception) -> bool:
    """Check whether a request was retried before this answer, so that an earlier try may have been carried out."""
    return _REPEATED.search(str(error)) is not None


def _sentence(error: Exception, doing: str, bucket: Bucket, right: str) -> StorageError:
    text, status, code = str(error), status_of(error), code_of(error)
    kind: type[StorageError] = UnreachableError if status in _DOWN else StorageError
    if _MACHINE in text:
        answer, remedy = "no credentials", _NO_CREDENTIALS
    elif "incorrectly configured region" in text:
        answer, remedy = "redirected", _REGION
    elif status is None:
        answer, remedy, kind = _road(text), _UNREACHED, UnreachableError
    else:
        answer = f"{status} {code}".strip()
        remedy = _BY_CODE.get(code) or _BY_STATUS.get(status, _OTHER)
    keys = f"the profile {bucket.profile!r}" if bucket.profile else bucket.service.keys
    remedy = remedy.format(bucket=bucket.name, keys=keys, right=right, sign_in=bucket.service.sign_in)
    return kind(f"{doing} failed in {bucket.url} ({answer}). {remedy}")


def _road(text: str) -> str:
    """Return the problem with the connection to the server, in a few words."""
    match = _ROAD.search(text)
    word = match[0].lower() if match else "no connection"
    return "no answer in time" if word in ("timedout", "timed out") else word
