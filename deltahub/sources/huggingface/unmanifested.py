"""Repos that contain a delta but no manifest, because other programs made them.

Files are verified against the hub's listing: by sha256 for files in LFS, by git's sha1 for others. Only the files of the delta
are downloaded, whatever else the repo contains; the manifest needs their content, so they are downloaded at once.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deltahub.checkpoint.checkpoint import CARD, CONFIG, describe, read_document
from deltahub.checkpoint.foreign import recognise
from deltahub.checkpoint.from_files import foreign_manifest
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import CheckpointError, IntegrityError
from deltahub.files.atomic import copy_hashed, sha256_file, storage_errors
from deltahub.reference import Digest
from deltahub.sources.huggingface.download import copy, git_blob
from deltahub.sources.huggingface.snapshot import Snapshot
from deltahub.stores.base import Progress

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_LARGEST: Final = 1 << 30  # bytes of a file that only its content can show to be a delta
_SHOWN: Final = 5  # file names in a message


class UnmanifestedDelta:
    """The delta of a commit without a manifest; its files are in a temporary folder during the object's lifetime.

    Args:
        snapshot: the commit.

    Raises:
        CheckpointError: it contains no readable delta.
        IntegrityError: a file does not match the hub's listing or its config.
        UnreachableError: the hub did not answer.
        StorageError: the hub refused.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._siblings = self._list()
        place = Path(tempfile.gettempdir())
        with storage_errors("Using the temporary folder", place):
            self._folder = Path(tempfile.mkdtemp(prefix="deltahub-", dir=place))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self.manifest = self._manifest()

    def fetch(self, entry: FileEntry, into: Path, progress: Progress | None = None) -> None:
        """Copy and verify a file.

        Raises:
            IntegrityError: it was changed in the temporary folder.
        """
        digest, _ = copy_hashed(self._folder / entry.path, into)
        if digest != entry.sha256:
            into.unlink()
            raise IntegrityError(entry.path, Digest.of_hex(entry.sha256), Digest.of_hex(digest), "Pull it again.")
        if progress:
            progress(entry.size)

    def _list(self) -> dict[str, RepoSibling]:
        at = self._snapshot
        info = at.calls.make(
            lambda: at.calls.api.model_info(at.repo, revision=at.commit, files_metadata=True),
            f"Pulling {at.repo}",
            str(at),
        )
        return {file.rfilename: file for file in info.siblings or ()}

    def _manifest(self) -> Manifest:
        if CONFIG in self._siblings:
            return self._saved_by_deltahub()
        sizes = {name: sibling.size or 0 for name, sibling in self._siblings.items()}
        found = recognise(sizes, self._read)
        if found and not found.missing:
            for name in found.files:
                self._take_once(name)
            entries = [FileEntry(name, *sha256_file(self._folder / name)) for name in found.files]
            return foreign_manifest(found, entries, lambda entry, start, end: self._read(entry.path, start, end))
        names_listed = ", ".join(sorted(self._siblings)[:_SHOWN]) or "nothing"
        msg = f"{self._snapshot} holds no delta: {CONFIG} is missing, and there is {names_listed}. Check the name."
        raise CheckpointError(msg)

    def _saved_by_deltahub(self) -> Manifest:
        self._take(CONFIG)
        try:
            for name in sorted({*read_document(self._folder).get("files", {}), CARD} & self._siblings.keys()):
                self._take(name)
            return describe(self._folder)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(self._folder), str(self._snapshot))) from error
        except IntegrityError as error:
            subject = error.what.replace(str(self._folder), str(self._snapshot))
            raise IntegrityError(subject, error.expected, error.found, error.remedy) from error

    def _read(self, name: str, start: int, end: int) -> bytes:
        """Read a range of a file, which is downloaded as a whole; nothing of one too large to be downloaded on suspicion."""
        if (self._siblings[name].size or 0) > _LARGEST and not (self._folder / name).exists():
            return b""
        self._take_once(name)
        with (self._folder / name).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _take_once(self, name: str) -> None:
        if not (self._folder / name).exists():
            self._take(name)

    def _take(self, name: str) -> None:
        """Download a file into the temporary folder, and verify it against the hub's listing."""
        sibling, at, path = self._siblings[name], self._snapshot, self._folder / name
        expected_sha256 = sibling.lfs.sha256 if sibling.lfs else None
        sha256 = copy(at.calls, at.repo, at.commit, name, path, sibling.size or 0, None, at.partials, expected_sha256)
        if sibling.lfs:
            expected, actual = f"sha256:{sibling.lfs.sha256}", f"sha256:{sha256}"
        else:
            expected, actual = f"git blob {sibling.blob_id}", f"git blob {git_blob(path.read_bytes())}"
        if expected != actual:
            raise IntegrityError(f"{name} of {at} in {at.calls.place}", expected, actual, "Pull it again.")
