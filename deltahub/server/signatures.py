"""Addresses that are good for one upload or download by whoever has them, for a time: clients send no token along with the bytes.

The key lies in the registry's own store, so that every process of a hub takes the addresses of every other.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Final
from urllib.parse import urlencode

from deltahub.errors import ConflictError, NotFoundError
from deltahub.manifest import canonical_json
from deltahub.registry.hub_documents import KEYS
from deltahub.server.refusals import Refusal
from deltahub.stores.base import Store

LIFETIME: Final = 6 * 3600  # seconds, for large files over slow lines,
DOWNLOAD: Final = 600  # and for reading, which begins at once
_KEY: Final = f"{KEYS.prefix}uploads.json"


class Signer:
    """Signs addresses, and checks them.

    Args:
        store: of the hub's registry.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _key(self) -> bytes:
        """The key that all processes share; made by whichever needs it first.

        Raises:
            IntegrityError: it is damaged. Nothing is signed, and no address is good.
        """
        found = KEYS.read(self._store, _KEY)
        if found is None:
            with contextlib.suppress(ConflictError):  # another process was faster
                KEYS.write(self._store, _KEY, {"secret": secrets.token_hex(32)}, None)
            found = KEYS.read(self._store, _KEY)
        if found is None:
            raise NotFoundError(_KEY, (self._store.url,))
        return bytes.fromhex(found[0]["secret"])

    def _signature(self, facts: Mapping[str, str]) -> str:
        return hmac.new(self._key, canonical_json(dict(facts)), hashlib.sha256).hexdigest()

    def signed(self, url: str, facts: Mapping[str, str], lifetime: int | None = None) -> str:
        """An address that carries its own permission.

        Args:
            url: without a query.
            facts: what it is good for.
            lifetime: seconds for which it is good; by default `LIFETIME`.
        """
        query = {**facts, "expires": str(int(time.time()) + (LIFETIME if lifetime is None else lifetime))}
        return f"{url}?{urlencode({**query, 'signature': self._signature(query)})}"

    def require(self, query: Mapping[str, str], facts: Mapping[str, str]) -> None:
        """Check that an address was signed here for this, and is not too old.

        Args:
            query: of the address.
            facts: what it is used for.

        Raises:
            Refusal: it was not, or is.
        """
        expires, given = query.get("expires", ""), query.get("signature", "").encode()
        if not hmac.compare_digest(self._signature({**facts, "expires": expires}).encode(), given):
            raise Refusal(
                403, "This address was not made by this hub for this. Ask for a new one, and use it as it is."
            )
        if int(expires) < time.time():
            raise Refusal(403, "This address has expired. Ask for a new one, and repeat it.")
