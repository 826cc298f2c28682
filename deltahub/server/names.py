"""Which paths files may have in a repository: all that any machine can write to its disk again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from deltahub.server.refusals import Refusal

_PATH: Final = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}(/[^/\\\x00-\x1f\x7f]{1,255}){0,31}")
_REORDERING: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # makes a name look like another one
LONGEST: Final = 1024  # letters of a path
_OWN: Final = ".deltahub-"  # files of the cache beside those of a delta


def check_path(path: str) -> str:
    """Return `path` if a file of a repository can have it.

    Raises:
        Refusal: it cannot.
    """
    parts = path.split("/")
    well_formed = len(path) <= LONGEST and _PATH.fullmatch(path) and not {".", ".."}.intersection(parts)
    if not well_formed or not _encodes(path) or _REORDERING.search(path) or any(part != part.strip() for part in parts):
        rule = "parts with '/' between them, none of them '.' or '..', without '\\', control characters and spaces at an end"
        raise Refusal(400, f"{path[:100]!r} cannot be the path of a file: expected {rule}.")
    if any(part.lower() == ".git" for part in parts) or path.startswith(_OWN):
        raise Refusal(400, f"{path[:100]!r} cannot be the path of a file: .git and {_OWN}... are reserved.")
    return path


def _encodes(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True


def refuse_clashes(paths: Iterable[str]) -> None:
    """Check that no file has the path of a folder.

    Raises:
        Refusal: one has.
    """
    files = set(paths)
    for path in files:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if (folder := "/".join(parts[:depth])) in files:
                raise Refusal(
                    400, f"{folder!r} cannot be a file and the folder of {path!r} at once. Delete one of them."
                )


def below(folder: str, files: Mapping[str, object]) -> list[str]:
    """The paths of files in a folder, and in the folders in it."""
    return [path for path in files if path.startswith(f"{folder.rstrip('/')}/")]
