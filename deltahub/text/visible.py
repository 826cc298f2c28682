"""Sanitising of untrusted text for terminals and logs: invisible characters are escaped, secrets redacted."""

from __future__ import annotations

import re
from typing import Final

# Control characters (C0 except line feed and tab, DEL, C1), line separators, and characters that are invisible or change the
# text direction. The joiners U+200C and U+200D are kept: words of some languages need them.
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)

# Tokens of DeltaHub's and Hugging Face's hubs; credentials in headers; signatures and passwords in addresses.
_SECRETS: Final = (
    (re.compile(r"\b(dhub_[0-9a-f]{16}|hf)_[A-Za-z0-9_-]{16,}"), r"\1_***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}"), r"\1 ***"),
    (
        re.compile(r"(?i)\b((?:x-amz-)?(?:signature|credential|security-token)|sig|token|password)=[^&\s\"']+"),
        r"\1=***",
    ),
    (re.compile(r"://[^/@\s:]+:[^/@\s]+@"), "://***@"),
)
_QUERY: Final = re.compile(r"([?&][\w.~%-]+=)[^&\s\"'#)>]+")
_USER: Final = re.compile(r"(?<=://)[^/?#\s\"']+@")


def visible(text: str) -> str:
    r"""Escape control and invisible characters as ``\u001b``, which JSON reads as the same character.

    Args:
        text: any text; its line feeds and tabs are kept.
    """
    return _INVISIBLE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def redacted(text: str) -> str:
    """Redact secrets that a log line may contain by accident."""
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def without_secrets(text: str) -> str:
    """Redact everything in a traceback that may be secret: as `redacted`, and the user and query values of every address."""
    return _QUERY.sub(r"\1***", _USER.sub("***@", redacted(text)))
