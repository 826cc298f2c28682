"""Signed URLs that authorise one upload or download for a limited time: clients send the bytes without a token.

The key is in the registry's own store, so that every process of a hub accepts the URLs signed by another.
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
from deltahub.files.documents import canonical_json
from deltahub.registry.hub_records import KEYS
from deltahub.server.errors import Refusal
from deltahub.stores.base import Store

LIFETIME: Final = 6 * 3600  # seconds, for large uploads over slow connections
DOWNLOAD: Final = 600  # seconds, for downloads, which begin at once
_KEY: Final = f"{KEYS.prefix}uploads.json"


class Signer:
    """Signs and verifies URLs.

    Args:
        store: of the hub's registry.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _key(self) -> bytes:
        """HMAC key shared by all processes; the first that needs it creates it.

        Raises:
            IntegrityError: it is damaged. No URL can be signed or verified.
        """
        record = KEYS.read(self._store, _KEY)
        if record is None:
            with contextlib.suppress(ConflictError):  # another process created it first
                KEYS.write(self._store, _KEY, {"secret": secrets.token_hex(32)}, None)
            record = KEYS.read(self._store, _KEY)
        if record is None:
            raise NotFoundError(_KEY, (self._store.url,))
        return bytes.fromhex(record[0]["secret"])

    def _signature(self, facts: Mapping[str, str]) -> str:
        return hmac.new(self._key, canonical_json(dict(facts)), hashlib.sha256).hexdigest()

    def signed(self, url: str, facts: Mapping[str, str], lifetime: int | None = None) -> str:
        """Return a signed URL.

        Args:
            url: without a query.
            facts: the operation that it permits.
            lifetime: seconds until it expires; by default `LIFETIME`.
        """
        query = {**facts, "expires": str(int(time.time()) + (LIFETIME if lifetime is None else lifetime))}
        return f"{url}?{urlencode({**query, 'signature': self._signature(query)})}"

    def require(self, query: Mapping[str, str], facts: Mapping[str, str]) -> None:
        """Check that a URL was signed by this hub for this operation, and has not expired.

        Args:
            query: of the URL.
            facts: the operation it is used for.

        Raises:
            Refusal: the signature does not match, or the URL has expired.
        """
        expires, signature = query.get("expires", ""), query.get("signature", "").encode()
        if not hmac.compare_digest(self._signature({**facts, "expires": expires}).encode(), signature):
            raise Refusal(
                403, "This address was not issued by this hub for this request. Ask for a new one, and use it as it is."
            )
        if int(expires) < time.time():
            raise Refusal(403, "This address has expired. Ask for a new one, and repeat it.")
