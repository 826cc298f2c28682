"""Links: deltas named by their address on the web.

    https://example.org/deltas/ner/                      a folder written by save_finetuned, as listed by a web server
    https://example.org/deltas/ner/delta_config.json     the same
    https://example.org/deltas.tar                       a bundle with one delta
    https://example.org/deltas.tar#acme/ner@v2           one of the deltas in a bundle
    ...#sha256=3f9a...                                   pinned to the digest of the delta, or of the named file

A link is displayed without its user, query and fragment, which may hold secrets.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from deltahub.errors import ReferenceSyntaxError
from deltahub.reference import Digest, Reference

SOURCE: Final = "url"  # the source name of links
_SCHEMES: Final = ("http://", "https://")
_PIN: Final = re.compile(r"[0-9a-f]{64}")
_FORM: Final = (
    "https://host/folder, or https://host/bundle.tar#namespace/name@version, with #sha256=<64 hex digits> or without"
)


@dataclass(frozen=True)
class Link:
    """One delta on the web.

    Attributes:
        url: the address without a fragment.
        inside: the delta in a bundle; None for its only one.
        pin: the required sha256 of the delta's digest or the named file, 64 hex digits; None for no check.
    """

    url: str
    inside: Reference | None = None
    pin: str | None = None

    @classmethod
    def parse(cls, text: str) -> Link:
        """Parse a link.

        Raises:
            ReferenceSyntaxError: the text is not a link; the message contains no secret.
        """
        url, _, fragment = text.partition("#")
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018  (raises for an invalid port)
        except ValueError as error:
            msg = f"Invalid link ({error}): expected {_FORM}."
            raise ReferenceSyntaxError(msg) from error
        strange = any(char.isspace() or not char.isprintable() for char in text)
        if not text.lower().startswith(_SCHEMES) or not parts.hostname or strange or "\\" in url:
            msg = f"Invalid link: expected {_FORM}."
            raise ReferenceSyntaxError(msg)
        inside: Reference | None = None
        pin: str | None = None
        for part in fragment.split("&") if fragment else ():
            if part.startswith("sha256="):
                pin = part.removeprefix("sha256=").lower()
                if not _PIN.fullmatch(pin):
                    msg = f"#{part} pins nothing: expected #sha256= and 64 hex digits."
                    raise ReferenceSyntaxError(msg)
            else:
                inside = Reference.parse(part)
        return cls(url, inside, pin)

    @property
    def shown(self) -> str:
        """The address without parts that may be secret."""
        return shown(self.url)

    @property
    def source(self) -> str:
        """The source name of links."""
        return SOURCE

    @property
    def version(self) -> str | None:
        """The version inside a bundle, if the link names one."""
        return self.inside.version if self.inside else None

    @property
    def path(self) -> str:
        """The name for display."""
        return self.inside.path if self.inside else self.shown

    @property
    def unplaced(self) -> None:
        """None, as no source is searched for a link."""

    @property
    def cache_key(self) -> str:
        """The key of its meaning in a cache: a hash of the address, as its parts may be secret."""
        return f"{self}#{hashlib.sha256(self.url.encode()).hexdigest()}"

    @property
    def cache_folder(self) -> str:
        """The folder of the meanings of links in a cache; no namespace begins with a dot."""
        return ".links"

    def pinned(self, digest: Digest) -> Link:
        """Return the same link, pinned to a digest."""
        return replace(self, pin=digest.hex)

    def __str__(self) -> str:
        parts = [str(self.inside)] if self.inside else []
        parts += [f"sha256={self.pin}"] if self.pin else []
        return f"{self.shown}#{'&'.join(parts)}" if parts else self.shown


def shown(url: str) -> str:
    """Remove the user, query and fragment of an address, which may be secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", "")) + ("?..." if parts.query else "")


def is_link(text: str) -> bool:
    """Return whether a text is a link."""
    return text.lower().startswith(_SCHEMES)


def parse_reference(text: str) -> Reference | Link:
    """Parse a user's input as a reference or a link.

    Raises:
        ReferenceSyntaxError: it is neither.
    """
    return Link.parse(text) if is_link(text) else Reference.parse(text)
