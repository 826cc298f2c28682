"""Calls to a hub of the Hugging Face protocol, through huggingface_hub's own client.

The address and token are read at every call, so that one process can use several hubs and a login takes effect at once. Failed
calls are retried where that may help; the final error is a single sentence.

Retries back off, and honour Retry-After.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from deltahub.log import LOGGER
from deltahub.sources.base import pause
from deltahub.sources.huggingface.failures import BUSY, CallContext, is_damaged, sentence
from deltahub.stores.retry import CONNECT_ATTEMPTS, HUB_ANSWER_TIMEOUT, HUB_ATTEMPTS
from deltahub.stores.threads import with_time_limit
from deltahub.text.credentials import header_value
from deltahub.version import VERSION

if TYPE_CHECKING:
    from huggingface_hub import HfApi


T = TypeVar("T")

_LONGEST: Final = 900.0  # total seconds that one call may wait: three windows of five minutes


def with_retries(call: Callable[[], T], doing: str, place: str, pause: Callable[[float], None]) -> T:
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
            seconds = retry_after(error.response.headers)
            if status not in BUSY or is_damaged(error) or (tries == HUB_ATTEMPTS and seconds is None):
                raise
            reason, problem = f"it answered {status}", error
        except httpx2.TransportError as error:
            nobody = isinstance(error, httpx2.ConnectError)  # unknown host or refused connection: fails fast
            if tries == (CONNECT_ATTEMPTS if nobody else HUB_ATTEMPTS):
                raise
            seconds, reason, problem = None, "the connection broke", error  # type: ignore[assignment]
        seconds = 2.0 ** (tries - 1) if seconds is None else seconds
        waited += seconds
        if waited > _LONGEST:
            raise problem
        LOGGER.warning("%s waits %.0f s for %s: %s.", doing, seconds, place, reason)
        pause(seconds)


def retry_after(headers: Mapping[str, str]) -> float | None:
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


Token = str | Literal[False] | None

HUGGING_FACE: Final = "https://huggingface.co"
_SLOWEST: Final = 10_000  # bytes of files a second; who is slower is given up
COMMIT: Final = "x-repo-commit"  # the header that says which commit an answer is from


class Calls:
    """Client of a hub, for one user.

    Args:
        name: of the source.
        endpoint: its URL; None for HF_ENDPOINT, or else the Hugging Face Hub.
        token: the user's token there; False for none.
        token_variable: the environment variable with the token otherwise; None for the token of `hf auth login` or HF_TOKEN.
        pause: waits for a number of seconds.
        longest: seconds for one answer as a whole.
    """

    def __init__(
        self,
        name: str,
        endpoint: str | None = None,
        token: Token = None,
        token_variable: str | None = None,
        pause: Callable[[float], None] = pause,
        longest: float = HUB_ANSWER_TIMEOUT,
    ) -> None:
        self.name = name
        self._endpoint = endpoint
        self._token = token
        self._token_variable = token_variable
        self._pause = pause
        self._longest = longest

    @property
    def endpoint(self) -> str:
        """The hub's URL without a trailing "/"."""
        return (self._endpoint or os.environ.get("HF_ENDPOINT", "").strip() or HUGGING_FACE).rstrip("/")

    @property
    def place(self) -> str:
        """The source's name and URL for people, without user and password."""
        scheme, _, rest = self.endpoint.rpartition("://")
        return f"{self.name} ({scheme}://{rest.rpartition('@')[2]})"

    @property
    def token(self) -> str | Literal[False]:
        """The token to send, without the trailing newline of a secret read from a file; False for none.

        Raises:
            ConfigError: it contains characters that a token cannot have.
        """
        if self._token is not None:
            secret, origin = self._token or "", f"The token given for the source {self.name}"
        elif self._token_variable is not None:
            secret, origin = (
                os.environ.get(self._token_variable, ""),
                f"The environment variable {self._token_variable}",
            )
        else:
            from huggingface_hub import get_token

            secret, origin = get_token() or "", "The token of HF_TOKEN or `hf auth login`"
        return header_value(secret, origin) or False

    @property
    def _log_in(self) -> str:
        if self._token_variable is None:
            return "log in with `hf auth login`, or set HF_TOKEN"
        return f"set {self._token_variable}, the environment variable for the token of the source {self.name}"

    @property
    def api(self) -> HfApi:
        """huggingface_hub's client for this hub."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token, library_name="deltahub", library_version=VERSION)

    def headers(self) -> dict[str, str]:
        """Return the headers for requests sent without huggingface_hub's client."""
        from huggingface_hub.utils import build_hf_headers

        headers = build_hf_headers(token=self.token, library_name="deltahub", library_version=VERSION)
        return {**headers, "Accept-Encoding": "identity"}

    def patience(self, size: int) -> float:
        """Return the seconds that a call may take which sends or gets so many bytes of files."""
        return self._longest + size / _SLOWEST

    def make(self, call: Callable[[], T], doing: str, subject: str, size: int | None = 0) -> T:
        """Make a call, again where that may help; what fails in the end is one sentence.

        Args:
            call: may be made more than once; it is given up if it does not end in time.
            doing: what is going on, e.g. ``"Pulling acme/ner"``.
            subject: the delta it is about.
            size: bytes of files that it sends or gets; None for a call that gives itself up, by TimeoutError.

        Raises:
            NotFoundError: the hub does not have it, or not for this token.
            UnreachableError: there was no answer, or none that ended.
            StorageError: it refused.
        """
        bounded_call = call if size is None else partial(with_time_limit, self.patience(size), call)
        attempt = CallContext(doing, subject, self.place, bool(self.token), self._log_in)
        try:
            return with_retries(bounded_call, doing, self.place, self._pause)
        except Exception as error:
            failure = sentence(error, attempt)
            if failure is None:
                raise
            raise failure from error
