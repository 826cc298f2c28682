"""Validation of file paths in a repository: only those that every operating system can write to disk.

Windows reserves characters, names and endings. Windows and macOS treat names that differ only in case as equal; macOS also those
that differ only in how accents are composed. Names that differ only in zero-width characters look the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

from deltahub.server.errors import Refusal

_PATH: Final = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}(/[^/\\\x00-\x1f\x7f]{1,255}){0,31}")
_RESERVED: Final = re.compile(
    r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\xb9\xb2\xb3])\s*(\..*)?"
)  # Windows devices
_FORBIDDEN: Final = re.compile(r'[<>:"|?*]')  # by Windows
# Zero-width, but in another Unicode category; and line separators.
_BLANK: Final = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2028\u2029\u3164\uffa0]")
_VARIANTS: Final = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # of a character, e.g. an emoji
LONGEST: Final = 1024  # characters of a path
_LONGEST_PART: Final = 255  # bytes of a file or folder name, on most systems
_OWN: Final = ".deltahub-"  # cache files next to those of a delta


def check_path(path: str) -> str:
    """Return `path` if it is valid for a file of a repository.

    Raises:
        Refusal: it is not.
    """
    parts = path.split("/")
    well_formed = len(path) <= LONGEST and _PATH.fullmatch(path) and not {".", ".."}.intersection(parts)
    if not well_formed or not _is_encodable(path) or any(part != part.strip() for part in parts):
        raise _refusal(
            path,
            "expected parts with '/' between them, none of them '.' or '..', without '\\', control characters and spaces at an end",
        )
    if any(part.lower() == ".git" for part in parts) or path.startswith(_OWN):
        raise _refusal(path, f".git and {_OWN}... are reserved")
    for part in parts:
        if reason := _unwritable(part):
            raise _refusal(path, reason)
    return path


def _refusal(path: str, reason: str) -> Refusal:
    return Refusal(422, f"{path[:100]!r} cannot be the path of a file: {reason}.")


def _unwritable(part: str) -> str | None:
    """Return why some systems cannot write a name, or display it differently; None if all can."""
    if match := _FORBIDDEN.search(part):
        return f"Windows writes no file with {match[0]!r} in its name"
    if _RESERVED.fullmatch(part):
        return f"{part!r} is the name of a device in Windows"
    if part.endswith("."):
        return "Windows drops a dot at the end of a name"
    if len(part.encode()) > _LONGEST_PART:
        return f"most systems write names of at most {_LONGEST_PART} bytes"
    if _BLANK.search(part) or any(unicodedata.category(char) == "Cf" for char in part):
        return "it holds characters that cannot be seen"
    return None


def _is_encodable(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def refuse_clashes(paths: Iterable[str]) -> None:
    """Check that no file has the path of a folder, and that no two paths are equal on some system.

    Raises:
        Refusal: one has, or two are.
    """
    files = set(paths)
    spellings: dict[str, str] = {}  # files and folders as written, by their folded path
    for path in sorted(files):
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if depth < len(parts) and name in files:
                raise Refusal(400, f"{name!r} cannot be a file and the folder of {path!r} at once. Delete one of them.")
            if (twin := spellings.setdefault(_folded(name), name)) != name:
                message = (
                    f"{name!r} and {twin!r} are one path where upper and lower case or composed and decomposed letters are not told "
                    "apart, as on Windows and macOS. Rename or delete one of them."
                )
                raise Refusal(400, message)


def _folded(path: str) -> str:
    """Return a key shared by all paths that are equal on some system."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", _VARIANTS.sub("", path)).casefold())


def below(folder: str, files: Mapping[str, object]) -> list[str]:
    """Return the paths of all files below a folder."""
    return [path for path in files if path.startswith(f"{folder.rstrip('/')}/")]
