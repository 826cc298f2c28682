"""Checks of users' tokens and keys before they are sent."""

from __future__ import annotations

from deltahub.errors import ConfigError


def header_value(text: str, origin: str) -> str:
    """Return a secret as the value of a request header, with surrounding white space stripped.

    Args:
        origin: the origin of the secret, as the subject of a sentence, e.g. ``"The environment variable HF_TOKEN"``.

    Raises:
        ConfigError: it has characters that a header cannot hold; the message does not show it.
    """
    value = text.strip()
    if bad_character := next((char for char in value if not "!" <= char <= "~"), None):
        kind = "white space" if bad_character.isspace() else f"the character U+{ord(bad_character):04X}"
        msg = (
            f"{origin} holds {kind}, which no token or key has: it may have been copied from a page, or holds several lines. "
            "Set it again; its value is not shown."
        )
        raise ConfigError(msg)
    return value
