"""Tokens and keys as users give them, checked before they are sent."""

from __future__ import annotations

from deltahub.errors import ConfigError


def header_value(text: str, where: str) -> str:
    """A secret as it can be sent in the header of a request: without the white space at its ends.

    Args:
        where: it comes from, as the subject of a sentence, e.g. ``"The environment variable HF_TOKEN"``.

    Raises:
        ConfigError: it holds what no header can; the message does not show it.
    """
    value = text.strip()
    if strange := next((char for char in value if not "!" <= char <= "~"), None):
        kind = "white space" if strange.isspace() else f"the character U+{ord(strange):04X}"
        msg = (
            f"{where} holds {kind}, which no token or key has: it may have been copied from a page, or holds several lines. "
            "Set it again; its value is not shown."
        )
        raise ConfigError(msg)
    return value
