"""The ``.gitattributes`` of a repository: which of its files clients treat as large files (git LFS).

A repository made on a hub shows one from its first commit on, as on the Hub. It is not stored with any version, so that an upload and a
push of the same files make the same version; it is shown until a commit brings another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

import re2
from pathspec import GitIgnoreSpec

from deltahub.checkpoint.manifest import FileEntry

GITATTRIBUTES: Final = ".gitattributes"
LARGE_FROM: Final = 1 << 20  # bytes above which a file counts as large whatever its name
_LONGEST: Final = 64 << 10  # bytes of a .gitattributes that are read
_MOST_RULES: Final = 1000
_PATTERNS: Final = """
*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot *.parquet *.pb
*.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*
"""
DEFAULT: Final = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _PATTERNS.split()).encode()
DEFAULT_ENTRY: Final = FileEntry.of(GITATTRIBUTES, DEFAULT)
IsLarge = Callable[[FileEntry], bool]


def shown_files(files: Mapping[str, FileEntry]) -> tuple[FileEntry, ...]:
    """Return the files of a version, sorted by path, with the default ``.gitattributes`` if they have none."""
    return tuple(sorted({GITATTRIBUTES: DEFAULT_ENTRY, **files}.values(), key=lambda entry: entry.path))


def large_files(attributes: bytes) -> IsLarge:
    """Return a function that says whether clients treat a file as a large one.

    Args:
        attributes: the content of the ``.gitattributes``; a longer one than is read, or an unreadable one, counts as the default.
    """
    rules = _rules(attributes if len(attributes) <= _LONGEST else DEFAULT)
    return lambda entry: entry.size > 0 and (entry.size > LARGE_FROM or rules.match_file(entry.path))


def readable(entry: FileEntry | None) -> bool:
    """Return whether a ``.gitattributes`` exists and is short enough to be followed."""
    return entry is not None and 0 < entry.size <= _LONGEST


@lru_cache(maxsize=256)
def _rules(attributes: bytes) -> GitIgnoreSpec:
    lines = [line.split() for line in attributes.decode(errors="replace").splitlines()[:_MOST_RULES]]
    patterns = [line[0] for line in lines if "filter=lfs" in line[1:] and line[0][0] not in '!#"']
    try:
        return GitIgnoreSpec.from_lines([pattern for pattern in patterns if not pattern.endswith("/")], backend="re2")
    except (ValueError, re2.error):
        return _rules(DEFAULT)
