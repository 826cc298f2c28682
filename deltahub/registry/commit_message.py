"""The message and id of a commit that pushes a delta to a hub, as the client and the server must agree on them.

The message ends in a trailer with the delta's digest, so that a later push finds it.
"""

from __future__ import annotations

import re
from typing import Final, Self

from deltahub.reference import Digest

DIGITS: Final = 40  # of a commit's id
_TRAILER: Final = re.compile(r"^DeltaHub-Digest: (sha256:[0-9a-f]{64})$", re.MULTILINE)


class CommitDigest(Digest):
    """Stand-in for the digest of a commit whose hub records none: ``"commit:"`` and the commit's id."""

    __slots__ = ()

    def __new__(cls, commit: str) -> Self:
        """Keep the commit's id."""
        return str.__new__(cls, f"commit:{commit}")

    def __getnewargs__(self) -> tuple[str]:
        """Return the commit's id, so that copies and pickles contain only the id."""
        return (self.hex,)


def commit_id(digest: Digest) -> str:
    """Return the id of a version's commit on a DeltaHub hub: the first 40 digits of its digest, the same on every server."""
    return digest.hex[:DIGITS]


def with_digest(message: str, digest: Digest) -> tuple[str, str]:
    """Return the title and the text of a commit that pushes a delta; the message may be empty."""
    title, _, rest = message.strip().partition("\n")
    return title or _untold(digest), "\n\n".join(filter(None, (rest.strip(), f"DeltaHub-Digest: {digest}")))


def digest_in(message: str) -> Digest | None:
    """Return the digest in the trailer of a commit message; None if it has none."""
    digests = _TRAILER.findall(message)
    return Digest(digests[-1]) if digests else None


def without_digest(message: str) -> str:
    """Return the message as the user gave it to the push."""
    digest = digest_in(message)
    text = _TRAILER.sub("", message).strip()
    return "" if digest and text == _untold(digest) else text


def _untold(digest: Digest) -> str:
    """Return the title of a push without a message."""
    return f"Push {digest.short}"
