"""Check which paths files may have in a repository: those that every system can write to its disk again.

Windows reserves characters, names and endings; Windows and macOS take names for one that differ in upper and lower case, and macOS those
that differ in how accents are composed; and nobody can tell names apart that differ in characters without width.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

from deltahub.server.refusals import Refusal

_PATH: Final = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}(/[^/\\\x00-\x1f\x7f]{1,255}){0,31}")
_RESERVED: Final = re.compile(
    r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\xb9\xb2\xb3])\s*(\..*)?"
)  # devices of Windows
_FORBIDDEN: Final = re.compile(r'[<>:"|?*]')  # by Windows
# Without width, though not of a category that says so; and those that end a line.
_BLANK: Final = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2028\u2029\u3164\uffa0]")
_VARIANTS: Final = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # of a character, such as of an emoji
LONGEST: Final = 1024  # letters of a path
_LONGEST_PART: Final = 255  # bytes of the name of a file or folder, on most systems
_OWN: Final = ".deltahub-"  # files of the cache beside those of a delta


def check_path(path: str) -> str:
    """Return `path` if a file of a repository can have it.

    Raises:
        Refusal: it cannot.
    """
    parts = path.split("/")
    well_formed = len(path) <= LONGEST and _PATH.fullmatch(path) and not {".", ".."}.intersection(parts)
    if not well_formed or not _encodes(path) or any(part != part.strip() for part in parts):
        raise _refusal(
            path,
            "expected parts with '/' between them, none of them '.' or '..', without '\\', control characters and spaces at an end",
        )
    if any(part.lower() == ".git" for part in parts) or path.startswith(_OWN):
        raise _refusal(path, f".git and {_OWN}... are reserved")
    for part in parts:
        if why := _unwritable(part):
            raise _refusal(path, why)
    return path


def _refusal(path: str, why: str) -> Refusal:
    return Refusal(400, f"{path[:100]!r} cannot be the path of a file: {why}.")


def _unwritable(part: str) -> str | None:
    """Return why some systems cannot write a name, or show it as another one; None if all can."""
    if found := _FORBIDDEN.search(part):
        return f"Windows writes no file with {found[0]!r} in its name"
    if _RESERVED.fullmatch(part):
        return f"{part!r} is the name of a device in Windows"
    if part.endswith("."):
        return "Windows drops a dot at the end of a name"
    if len(part.encode()) > _LONGEST_PART:
        return f"most systems write names of at most {_LONGEST_PART} bytes"
    if _BLANK.search(part) or any(unicodedata.category(char) == "Cf" for char in part):
        return "it holds characters that cannot be seen"
    return None


def _encodes(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True


def refuse_clashes(paths: Iterable[str]) -> None:
    """Check that no file has the path of a folder, and that no two paths are one on some systems.

    Raises:
        Refusal: one has, or two are.
    """
    files = set(paths)
    written: dict[str, str] = {}  # files and folders as they are written, by what they are on every system
    for path in sorted(files):
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if depth < len(parts) and name in files:
                raise Refusal(400, f"{name!r} cannot be a file and the folder of {path!r} at once. Delete one of them.")
            if (twin := written.setdefault(_folded(name), name)) != name:
                message = (
                    f"{name!r} and {twin!r} are one path where upper and lower case or composed and decomposed letters are not told "
                    "apart, as on Windows and macOS. Rename or delete one of them."
                )
                raise Refusal(400, message)


def _folded(path: str) -> str:
    """Return what a path has in common with all that are the same one on some system."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", _VARIANTS.sub("", path)).casefold())


def below(folder: str, files: Mapping[str, object]) -> list[str]:
    """The paths of files in a folder, and in the folders in it."""
    return [path for path in files if path.startswith(f"{folder.rstrip('/')}/")]
