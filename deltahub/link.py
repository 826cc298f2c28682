"""Links: deltas named by where they lie on the web.

    https://example.org/deltas/ner/                      a folder that save_finetuned wrote, as a web server shows it
    https://example.org/deltas/ner/delta_config.json     the same
    https://example.org/deltas.tar                       a bundle with one delta
    https://example.org/deltas.tar#acme/ner@v2           one of the deltas in a bundle
    ...#sha256=3f9a...                                   only if it is this: the digest of the delta, or of the file named

A link is shown without its user, its query and its fragment: they may hold secrets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from deltahub.errors import ReferenceSyntaxError
from deltahub.reference import Reference

SOURCE: Final = "url"  # what links are called as a source
_SCHEMES: Final = ("http://", "https://")
_PIN: Final = re.compile(r"[0-9a-f]{64}")
_FORM: Final = (
    "https://host/folder, or https://host/bundle.tar#namespace/name@version, with #sha256=<64 hex digits> or without"
)


@dataclass(frozen=True)
class Link:
    """One delta on the web.

    Attributes:
        url: without a fragment.
        inside: which delta of a bundle; None for its only one.
        pin: sha256 that the delta's digest or the named file must have, 64 hex digits; None for anything.
    """

    url: str
    inside: Reference | None = None
    pin: str | None = None

    @classmethod
    def parse(cls, text: str) -> Link:
        """Read a link.

        Raises:
            ReferenceSyntaxError: the text is none; the message shows no secret of it.
        """
        url, _, fragment = text.partition("#")
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018  (a port that is no number is found here)
        except ValueError as error:
            msg = f"This is no link ({error}): expected {_FORM}."
            raise ReferenceSyntaxError(msg) from error
        strange = any(char.isspace() or not char.isprintable() for char in text)
        if not text.lower().startswith(_SCHEMES) or not parts.hostname or strange or "\\" in url:
            msg = f"This is no link: expected {_FORM}."
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
        """The address without what may be secret."""
        return shown(self.url)

    @property
    def source(self) -> str:
        """What links are called as a source."""
        return SOURCE

    @property
    def version(self) -> str | None:
        """The version inside a bundle, if one is named."""
        return self.inside.version if self.inside else None

    @property
    def path(self) -> str:
        """What it is called, for people."""
        return self.inside.path if self.inside else self.shown

    def pinned(self, digest: str) -> Link:
        """The same, for the delta of this digest only."""
        return replace(self, pin=digest.removeprefix("sha256:"))

    def __str__(self) -> str:
        parts = [str(self.inside)] if self.inside else []
        parts += [f"sha256={self.pin}"] if self.pin else []
        return f"{self.shown}#{'&'.join(parts)}" if parts else self.shown


def shown(url: str) -> str:
    """An address without its user, query and fragment, which may be secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", "")) + ("?..." if parts.query else "")


def is_link(text: str) -> bool:
    """Whether a text names a delta on the web."""
    return text.lower().startswith(_SCHEMES)


def asked(text: str) -> Reference | Link:
    """What a user asks for: a reference, or a link.

    Raises:
        ReferenceSyntaxError: it is neither.
    """
    return Link.parse(text) if is_link(text) else Reference.parse(text)
