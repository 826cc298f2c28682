"""What an S3 server or the way to it answers, as one sentence with the way out."""

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
    "169.254.169.254"  # where a machine in the cloud gives out credentials: asked when there are no others
)

_NO_CREDENTIALS: Final = (
    "No credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile."
)
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
_BY_CODE: Final = {
    "NoSuchBucket": "The bucket {bucket!r} does not exist there. Create it, or correct the address of the registry.",
    "RequestTimeTooSkewed": "This machine's clock is wrong. Set it and repeat.",
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure"), _UNKNOWN),
    **dict.fromkeys(("ExpiredToken", "TokenRefreshRequired"), _EXPIRED),
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed"), _REGION),
    **dict.fromkeys(("InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"), _FULL),
}
_DOWN: Final = frozenset({500, 502, 503, 504})  # after several tries it counts as no answer
_BY_STATUS: Final = {
    401: _UNKNOWN,
    403: _FORBIDDEN,
    507: _FULL,
    **dict.fromkeys((429, 500, 502, 503, 504), _BUSY),
}


@contextlib.contextmanager
def s3_errors(doing: str, bucket: Bucket, right: str = "write") -> Iterator[None]:
    """Turn what obstore raises into one sentence; a key that is missing stays a FileNotFoundError.

    Args:
        doing: what was going on, e.g. ``"Reading the registry"``.
        right: what the store was used for, in one word.
    """
    from obstore.exceptions import BaseError  # late: no other store needs it

    try:
        yield
    except FileNotFoundError as error:
        if code_of(error) == "NoSuchBucket":
            raise _sentence(error, doing, bucket, right) from error
        raise
    except BaseError as error:
        raise _sentence(error, doing, bucket, right) from error


def status_of(error: Exception) -> int | None:
    """The HTTP status of the answer; None if there was no answer."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def code_of(error: Exception) -> str:
    """What the server calls the error, e.g. ``"NoSuchBucket"``; empty if it does not say."""
    found = _CODE.search(str(error))
    return found[1] if found else ""


def lost(error: Exception) -> bool:
    """Whether a request may have been carried out though its answer did not arrive."""
    return status_of(error) is None and _MACHINE not in str(error)


def repeated(error: Exception) -> bool:
    """Whether a request was sent again before this answer came, so that an earlier try may have been carried out."""
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
    keys = f"the profile {bucket.profile!r}" if bucket.profile else "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    remedy = remedy.format(bucket=bucket.name, keys=keys, right=right)
    return kind(f"{doing} failed in {bucket.url} ({answer}). {remedy}")


def _road(text: str) -> str:
    """What is wrong with the way to the server."""
    found = _ROAD.search(text)
    word = found[0].lower() if found else "no connection"
    return "no answer in time" if word in ("timedout", "timed out") else word
