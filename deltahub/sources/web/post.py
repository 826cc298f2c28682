"""Signed POST requests to addresses that somebody else chose: public ones alone, without redirects and proxies.

The address that a connection was made to is checked before anything is sent, so that a name which resolves to another address the
second time leads nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
from typing import Final
from urllib.parse import urlsplit

import requests

from deltahub.errors import StorageError, UnreachableError
from deltahub.sources.web.public_only import Guard, GuardedAdapter, PrivateAddressError, is_public
from deltahub.stores.threads import with_time_limit
from deltahub.version import VERSION

SIGNATURE: Final = "X-DeltaHub-Signature"
_CONNECT, _READ, _WHOLE = 5.0, 10.0, 20.0  # seconds


def signature(secret: str, body: bytes, time: int) -> str:
    """Return the signature of a body: ``t=<time>,v1=<HMAC-SHA256 of "time.body", in hex>``.

    Args:
        time: seconds since 1970; receivers refuse one that is minutes old, so that nobody can send a body again.
    """
    digest = hmac.new(secret.encode(), b"%d." % time + body, hashlib.sha256).hexdigest()
    return f"t={time},v1={digest}"


def _require_public(url: str) -> None:
    """Refuse a name with any address that is not public before a connection is made, which would tell which ports are open.

    Raises:
        PrivateAddressError: it has one.
        OSError: the name is not known.
    """
    parts = urlsplit(url)
    for *_, address in socket.getaddrinfo(parts.hostname, parts.port or parts.scheme, type=socket.SOCK_STREAM):
        if not is_public(str(address[0])):
            raise PrivateAddressError(str(address[0]))


def post(url: str, body: bytes, time: int, secret: str | None = None, *, private: bool = False) -> None:
    """Send a JSON body.

    Args:
        time: seconds since 1970, for the signature.
        secret: shared with the receiver; None to sign nothing.
        private: whether the address may be private.

    Raises:
        UnreachableError: the receiver gave no answer, or its address is not public.
        StorageError: the receiver did not answer with a status from 200 to 299.
    """
    headers = {"Content-Type": "application/json", "User-Agent": f"deltahub/{VERSION}"}
    if secret:
        headers[SIGNATURE] = signature(secret, body, time)
    guard = Guard()
    guard.public = None if private else True
    with requests.Session() as session:
        session.trust_env = False  # a proxy would make the connection that is to be checked
        if not private:
            session.mount("http://", GuardedAdapter(guard))
            session.mount("https://", GuardedAdapter(guard))

        def send() -> int:
            if not private:
                _require_public(url)
            timeout = (_CONNECT, _READ)
            with session.post(
                url, data=body, headers=headers, timeout=timeout, allow_redirects=False, stream=True
            ) as answer:
                return answer.status_code

        try:
            status = with_time_limit(_WHOLE, send)
        except PrivateAddressError as error:
            msg = "The address of the receiver is not public. An administrator can allow it: deltahub serve --private-webhooks"
            raise UnreachableError(msg) from error
        except (requests.RequestException, TimeoutError, OSError) as error:
            msg = f"The receiver gave no answer ({type(error).__name__}). Check its address."
            raise UnreachableError(msg) from error
    if not 200 <= status < 300:
        msg = f"The receiver answered {status}; expected 200 to 299, and redirects are not followed."
        raise StorageError(msg)
