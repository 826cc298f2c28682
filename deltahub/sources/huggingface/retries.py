"""Retries with back-off for calls that a hub rejects or that fail, honouring Retry-After."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from deltahub.log import LOGGER
from deltahub.sources.huggingface.failures import BUSY

T = TypeVar("T")

_TRIES: Final = 5
_TRIES_TO_CONNECT: Final = 2
_LONGEST: Final = 900.0  # total seconds that one call may wait: three windows of five minutes


def patiently(call: Callable[[], T], doing: str, place: str, pause: Callable[[float], None]) -> T:
    """Make a call, with retries while the server is busy, limits the rate or is unreachable.

    Args:
        call: may be made more than once.
        doing: the operation, for the log message.
        pause: waits for a number of seconds.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    waited, tries = 0.0, 0
    while True:
        tries += 1
        try:
            return call()
        except HfHubHTTPError as error:
            status = error.response.status_code
            seconds = told(error.response.headers)
            if status not in BUSY or (tries == _TRIES and seconds is None):
                raise
            reason, problem = f"it answered {status}", error
        except httpx2.TransportError as error:
            nobody = isinstance(error, httpx2.ConnectError)  # unknown host or refused connection: fails fast
            if tries == (_TRIES_TO_CONNECT if nobody else _TRIES):
                raise
            seconds, reason, problem = None, "the connection broke", error  # type: ignore[assignment]
        seconds = 2.0 ** (tries - 1) if seconds is None else seconds
        waited += seconds
        if waited > _LONGEST:
            raise problem
        LOGGER.warning("%s waits %.0f s for %s: %s.", doing, seconds, place, reason)
        pause(seconds)


def told(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait; None if it does not.

    They come from `Retry-After`, a number or a date, or from `ratelimit` as sent by the Hugging Face Hub: ``"api";r=0;t=55``.
    """
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0  # fractions of a second are truncated there
    after = headers.get("retry-after", "").strip()
    if after.isdigit():
        return max(1.0, float(after))
    try:
        return max(1.0, (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # not a date, or one without a time zone
        return None
