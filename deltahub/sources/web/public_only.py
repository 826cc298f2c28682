"""SSRF guard: checks the address of each connection before sending a request.

A link that starts on a public server must not redirect into the network behind the user's firewall: the author of the redirect
could make this machine request what only it can reach. The guard checks the address actually connected to, since a name may
resolve differently when checked and when used. Behind a proxy only the proxy knows the address; then the host name is checked.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from requests import PreparedRequest, Response

_TRANSLATED: Final = ipaddress.ip_network(
    "64:ff9b::/96"
)  # a gateway translates it to the IPv4 address in its last 32 bits (RFC 6052)
_LOCAL_NAMES: Final = ("localhost", ".localhost", ".local", ".internal", ".home.arpa")


class PrivateAddressError(Exception):
    """A redirect led to a private address. Not an OSError, which urllib3 would treat as a lost connection."""


class Guard:
    """Records whether a link starts on a public server, and then allows only public addresses."""

    def __init__(self) -> None:
        self.public: bool | None = None  # unknown before the first connection

    def check(self, address: str) -> None:
        """Record the first address, and refuse a private one after a public one.

        Args:
            address: an IP address.

        Raises:
            PrivateAddressError: the link started on a public server, and this address is private.
        """
        public = is_public(address)
        if self.public is None:
            self.public = public
        if self.public and not public:
            msg = f"It leads from a public server to {address}, which is not public, so nothing is asked there."
            raise PrivateAddressError(msg)


def is_public(address: str) -> bool:
    """Return whether an IP address is globally reachable: not loopback, link-local, private or reserved."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None)
    if parsed in _TRANSLATED:
        inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    return (inner or parsed).is_global and not parsed.is_multicast


def looks_public(host: str) -> bool:
    """Return whether a host name or address appears to be public, without a DNS lookup."""
    bare = host.strip("[]").rstrip(".").lower()
    try:
        return is_public(bare)
    except ValueError:
        if re.fullmatch(
            r"(0x[0-9a-f]*|[0-9]+)", bare.rpartition(".")[2]
        ):  # an address in another notation, such as 127.1
            return False
        return not (bare in _LOCAL_NAMES or bare.endswith(_LOCAL_NAMES[1:]) or "." not in bare)


class GuardedAdapter(HTTPAdapter):
    """Transport adapter whose connections are checked by a guard.

    Args:
        guard: of a link.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Use guarded connections where no proxy is used."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _pools(self._guard)

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request; behind a proxy, check the host name first."""
        url = request.url or ""
        if select_proxy(url, dict(proxies or {})):
            public = looks_public(urlsplit(url).hostname or "")
            self._guard.check("1.1.1.1" if public else "127.0.0.1")
        return super().send(request, stream, timeout, verify, cert, proxies)


def _pools(guard: Guard) -> dict[str, type[HTTPConnectionPool]]:
    class Looked:
        def _new_conn(self) -> socket.socket:
            made: socket.socket = super()._new_conn()  # type: ignore[misc]
            try:
                guard.check(made.getpeername()[0])
            except BaseException:
                made.close()
                raise
            return made

    class Plain(Looked, HTTPConnection):
        pass

    class Secure(Looked, HTTPSConnection):
        pass

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
