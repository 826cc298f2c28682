"""HTTP client for links: safe redirects, retries with back-off, and limits on sizes, timeouts and attempts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Final, Self
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.exceptions import RequestException

from deltahub.errors import ConfigError, DeltaHubError, StorageError, UnreachableError
from deltahub.link import shown
from deltahub.log import LOGGER
from deltahub.sources.base import pause
from deltahub.sources.web.public_only import Guard, GuardedAdapter, PrivateAddressError
from deltahub.stores.threads import with_time_limit
from deltahub.version import VERSION

FILE_VARIABLE: Final = "DELTAHUB_MAX_FILE"
TOTAL_VARIABLE: Final = "DELTAHUB_MAX_DOWNLOAD"
_SLOWEST: Final = 10_000  # bytes a second; who is slower is given up
_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([KMGT]?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """Limits on downloads.

    Attributes:
        file: bytes of a file, or of a whole bundle.
        total: bytes of all files of a delta.
        redirects: maximum number of redirects.
        tries: maximum number of attempts per request.
        connect: connection timeout in seconds.
        answer: seconds without a byte.
        whole: seconds for an answer that is read into memory, and for the headers of an answer that is copied.
        backoff: seconds before the second try; each further wait is twice as long.
        longest: seconds of the longest wait, also if the server asks for it.
    """

    file: int = 20 * 10**9
    total: int = 50 * 10**9
    redirects: int = 5
    tries: int = 6
    connect: float = 10.0
    answer: float = 60.0
    whole: float = 300.0
    backoff: float = 0.5
    longest: float = 120.0

    def seconds(self, size: int) -> float:
        """Return how long so many bytes may take."""
        return self.whole + size / _SLOWEST

    @classmethod
    def read(cls) -> Self:
        """Read the limits from `DELTAHUB_MAX_FILE` and `DELTAHUB_MAX_DOWNLOAD`, with defaults.

        Raises:
            ConfigError: a value is not a size.
        """
        return cls(file=_size(FILE_VARIABLE, cls.file), total=_size(TOTAL_VARIABLE, cls.total))


def _size(variable: str, usual: int) -> int:
    text = os.environ.get(variable, "").strip()
    if not text:
        return usual
    match = _SIZE.fullmatch(text)
    if match is None:
        msg = f"{variable} is {text!r}; expected a number of bytes, or one with KB, MB, GB or TB, such as 20GB."
        raise ConfigError(msg)
    unit = (match[2] or "").upper()
    return int(match[1]) * _UNITS["" if unit == "B" else unit]


_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_DIALS: Final = 2  # attempts before a server that accepts no connection counts as unreachable
_PORTS: Final = {"http": 80, "https": 443}


class Web:
    """HTTP client for the requests of a link.

    Args:
        limits: timeouts and numbers of attempts.
        pause: waits for a number of seconds.
    """

    def __init__(self, limits: Limits, pause: Callable[[float], None] = pause) -> None:
        self.limits = limits
        self._pause = pause
        self._session = requests.Session()
        # Same setting as for hubs and buckets. REQUESTS_CA_BUNDLE takes precedence, as usual.
        self._session.verify = os.environ.get("SSL_CERT_FILE") or True
        guard = Guard()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, GuardedAdapter(guard))

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> requests.Response:
        """Send a GET request; the body is not read yet, and the caller closes the response.

        Requests to a busy or unreachable server are retried with back-off, honouring Retry-After.

        Returns:
            A response other than a redirect: 2xx, 304, 404, 410 or 416.

        Raises:
            UnreachableError: the server does not answer, the server stays busy, or a redirect is not allowed.
            StorageError: the server refuses.
        """
        for number in range(self.limits.tries):
            is_last = number == self.limits.tries - 1
            try:
                response = self._once(url, headers or {})
            except RequestException as error:
                is_gone = number >= _DIALS - 1 and _never_connected(error)
                if is_last or is_gone or not isinstance(error, requests.ConnectionError | requests.Timeout):
                    raise no_answer(url, error) from error
                self.wait(number, None, shown(url), "gives no answer")
                continue
            if response.status_code in _BUSY and not is_last:
                retry_after = response.headers.get("Retry-After")
                response.close()
                self.wait(number, retry_after, shown(url), f"is busy ({response.status_code})")
                continue
            if response.ok or response.status_code in (404, 410, 416):
                return response
            response.close()
            raise _refused(url, response.status_code)
        raise AssertionError  # the last attempt returns or raises

    def wait(self, number: int, retry_after: str | None, address: str, problem: str) -> None:
        """Wait before the next attempt.

        Args:
            number: number of waits before this one.
            retry_after: the server's Retry-After header, if any.
        """
        seconds = min(max(self.limits.backoff * 2**number, _seconds(retry_after)), self.limits.longest)
        LOGGER.warning("%s %s; asking again in %.0f s.", address, problem, seconds)
        self._pause(seconds)

    def _once(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        all_headers = {"User-Agent": f"deltahub/{VERSION}", "Accept-Encoding": "identity", **headers}
        patience = (self.limits.connect, self.limits.answer)
        address = url
        for _ in range(self.limits.redirects + 1):
            try:
                request = partial(
                    self._session.get,
                    address,
                    headers=all_headers,
                    timeout=patience,
                    stream=True,
                    allow_redirects=False,
                )
                response: requests.Response = with_time_limit(self.limits.whole, request)
            except TimeoutError as error:
                raise too_slow(url, self.limits.whole) from error
            except PrivateAddressError as error:
                msg = f"{shown(url)} is not followed to {shown(address)}. {error}"
                raise UnreachableError(msg) from error
            location = response.headers.get("Location")
            if response.status_code not in _MOVED or location is None:
                return response
            response.close()
            address = _next(url, address, location)
        msg = (
            f"{shown(url)} sends on more than {self.limits.redirects} times, the last time to {shown(address)}. "
            "Ask its owner for the address of the file itself."
        )
        raise UnreachableError(msg)


def _next(start: str, address: str, location: str) -> str:
    """Return the target of a redirect, if it may be followed."""
    target = urljoin(address, location).partition("#")[0]
    scheme = urlsplit(target).scheme.lower()
    if scheme not in _PORTS or (urlsplit(address).scheme.lower() == "https" and scheme != "https"):
        msg = (
            f"{shown(start)} is not followed to {shown(target)}: a secure address must not lead to one that is not, "
            "where anybody on the way could change the bytes. Ask its owner for another address."
        )
        raise UnreachableError(msg)
    return target


def _never_connected(error: Exception) -> bool:
    """Return whether no connection was made: refused, unknown host name, or no network."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)


def no_answer(url: str, error: Exception) -> DeltaHubError:
    """Return the error for a server that does not answer."""
    if isinstance(error, requests.exceptions.SSLError):
        reason = "its certificate is not trusted; SSL_CERT_FILE names those of your own"
    elif isinstance(error, requests.exceptions.ProxyError):
        reason = "the proxy does not let it through; HTTPS_PROXY and NO_PROXY say which is used"
    elif isinstance(error, requests.Timeout):
        reason = "no answer in time"
    elif isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return StorageError(f"{shown(url)} is not the address of a server. Correct the link.")
    else:
        reason = "no connection" if isinstance(error, requests.RequestException) else f"it broke off: {error}"
    msg = f"Fetching {shown(url)} failed ({reason}). Check the network and the address, and repeat."
    return UnreachableError(msg)


def too_slow(url: str, seconds: float) -> UnreachableError:
    """Return the error for an answer that does not end."""
    msg = (
        f"Fetching {shown(url)} failed (its answer has not ended after {seconds:.0f} s). It is too slow: repeat later."
    )
    return UnreachableError(msg)


def _refused(url: str, status: int) -> StorageError:
    if status in _BUSY:
        return UnreachableError(f"Fetching {shown(url)} failed ({status}), after several tries too. Repeat later.")
    remedy = {
        401: "It requires a login: put it into ~/.netrc, or pass a link that needs none.",
        403: "It does not let you in. Ask its owner, or get a new link if this one has run out.",
    }.get(status, "Open the link in a browser to see what is there.")
    return StorageError(f"Fetching {shown(url)} failed ({status}). {remedy}")


def _seconds(retry_after: str | None) -> float:
    """Parse a Retry-After header, a number or a date, to seconds."""
    if not retry_after:
        return 0.0
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0
