"""Bytes out of a repo: one request for one file, which also tells the commit that they are from."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from deltahub.errors import IntegrityError, StorageError
from deltahub.files import CHUNK
from deltahub.manifest import Manifest, digest_of
from deltahub.registry.commit_message import commit_id
from deltahub.sources.huggingface.calls import COMMIT, TIMEOUT, Calls
from deltahub.sources.partial import going_on
from deltahub.stores.base import Progress

if TYPE_CHECKING:
    from httpx2 import Response

_HEX: Final = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_GIT: Final = 40  # digits of a sha1
_PACK: Final = "x-deltahub-pack"
_MANIFEST: Final = "x-deltahub-manifest"
_SMALL: Final = 64 << 20  # bytes of a manifest or a card at most


@dataclass(frozen=True)
class Answer:
    """What a repo holds under a path.

    Attributes:
        commit: that the revision means, 40 hex digits.
        data: the file; None if there is none under this path.
        pack: where all files of a small delta are one answer, a path on the hub; None if it does not say.
        manifest: where the manifest of the commit is, whatever it holds, a path on the hub; None if it does not say.
    """

    commit: str
    data: bytes | None
    pack: str | None = None
    manifest: str | None = None


def read(calls: Calls, repo: str, revision: str, path: str, doing: str) -> Answer:
    """Read a small file at a revision, and what commit that is: one request.

    It is held against its etag, which is git's sha1 of it, or its sha256 if it is in LFS.

    Raises:
        IntegrityError: these are other bytes.
        NotFoundError: there is no such repo or revision.
        UnreachableError: there was no answer.
        StorageError: the hub refused, or the file is not small at all.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    what = f"{path} of {repo} in {calls.place}"

    def call() -> Answer:
        try:
            with _opened(calls, _url(calls, repo, revision, path)) as response:
                data = _all(response, _SMALL, what)
                _require_etag(response, data, what)
                return Answer(_commit(response), data, response.headers.get(_PACK), response.headers.get(_MANIFEST))
        except RemoteEntryNotFoundError as error:
            return Answer(_commit(error.response), None, manifest=error.response.headers.get(_MANIFEST))

    return calls.make(call, doing, f"{calls.name}:{repo}@{revision}")


def copy(
    calls: Calls,
    repo: str,
    commit: str,
    path: str,
    into: Path,
    size: int,
    progress: Progress | None,
    kept: Path | None = None,
    sha256: str | None = None,
) -> str:
    """Copy a file of a commit to a new place; a copy that breaks off goes on where it was, in another process too.

    Args:
        size: how many bytes it has; more are not taken.
        kept: the folder in which what was got is kept; None to keep nothing.
        sha256: that it should have, 64 hex digits; None if it is unknown.

    Returns:
        The sha256 of what was copied, 64 hex digits. The caller checks it.

    Raises:
        NotFoundError: the commit has no such file.
        UnreachableError: there was no answer.
        StorageError: the hub refused.
    """
    what, url = f"{path} of {calls.name}:{repo}@{commit}", _url(calls, repo, commit, path)
    with going_on(kept, sha256, into) as file:
        taken = _Copy(file, size, progress)

        def call() -> None:
            end = time.monotonic() + calls.patience(size)
            rest = {"Range": f"bytes={taken.done}-"} if taken.done else {}
            with _opened(calls, url, rest) as response:
                if response.headers.get("content-range", "").partition("-")[0] != f"bytes {taken.done}":
                    taken.restart()
                for chunk in response.iter_bytes():  # as they come, so that none is lost with the connection
                    if not taken.add(chunk):
                        return
                    if time.monotonic() > end:
                        msg = f"{taken.done:,} of {size:,} bytes after {calls.patience(size):.0f} s"
                        raise TimeoutError(msg)

        before = taken.take_up()
        if not before or before < size:
            calls.make(call, f"Pulling {repo}", what, None)
        if before and taken.digest.hexdigest() != sha256:  # what was there was not the start of it
            taken.restart()
            calls.make(call, f"Pulling {repo}", what, None)
    return taken.digest.hexdigest()


class _Copy:
    """A file that is being written.

    Args:
        file: open for reading and writing, at its start.
        size: bytes at most.
        progress: hears of every byte once, also of those that are fetched twice.
    """

    def __init__(self, file: BinaryIO, size: int, progress: Progress | None) -> None:
        self.file, self.size, self.progress = file, size, progress
        self.digest, self.done, self.told = hashlib.sha256(), 0, 0

    def take_up(self) -> int:
        """Count what is in the file already, unless there is more than there should be.

        Returns:
            How many bytes that is.
        """
        while self.done <= self.size and (chunk := self.file.read(CHUNK)):
            self.digest.update(chunk)
            self.done += len(chunk)
        if self.done > self.size:
            self.restart()
        self._tell()
        return self.done

    def restart(self) -> None:
        """Forget what was written."""
        self.file.seek(0)
        self.file.truncate()
        self.digest, self.done = hashlib.sha256(), 0

    def add(self, chunk: bytes) -> bool:
        """Write more; False once there are more bytes than there should be, so that the digest cannot be right."""
        self.file.write(chunk)
        self.digest.update(chunk)
        self.done += len(chunk)
        self._tell()
        return self.done <= self.size

    def _tell(self) -> None:
        if self.progress and self.done > self.told:
            self.progress(self.done - self.told)
            self.told = self.done


def read_pack(calls: Calls, repo: str, path: str, size: int) -> bytes:
    """Read all files of a small delta at once.

    Args:
        path: where the hub offers them; it is looked for on the hub itself only.
        size: of all files together.

    Raises:
        NotFoundError: there are none any more.
        UnreachableError: there was no answer.
        StorageError: the hub refused, or sends more.
    """
    what = f"the files of {repo} in {calls.place}"

    def call() -> bytes:
        with _opened(calls, f"{calls.endpoint}/{path.lstrip('/')}") as response:
            return _all(response, size, what)

    return calls.make(call, f"Pulling {repo}", what, size)


def read_manifest(calls: Calls, repo: str, commit: str, path: str) -> Manifest:
    """Read the manifest of a commit of a hub of DeltaHub, which is called by the manifest's digest.

    Args:
        path: where the hub offers it; it is looked for on the hub itself only.

    Raises:
        IntegrityError: it is not the one of that commit.
        UnreachableError: there was no answer.
        StorageError: the hub refused.
    """
    what = f"the manifest of {repo} in {calls.place}"

    def call() -> bytes:
        with _opened(calls, f"{calls.endpoint}/{path.lstrip('/')}") as response:
            return _all(response, _SMALL, what)

    data = calls.make(call, f"Looking up {repo}", f"{calls.name}:{repo}@{commit}")
    digest = digest_of(data)
    if commit_id(digest) != commit:
        raise IntegrityError(what, f"sha256:{commit}...", digest, "Pull it again.")
    return Manifest.from_bytes(data, digest)


def _url(calls: Calls, repo: str, revision: str, path: str) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repo, path, revision=revision, endpoint=calls.endpoint)


def _all(response: Response, most: int, what: str) -> bytes:
    data = bytearray()
    for chunk in response.iter_bytes():
        data += chunk
        if len(data) > most:
            msg = f"{what} has more than {most:,} bytes. Look at what is there."
            raise StorageError(msg)
    return bytes(data)


@contextmanager
def _opened(calls: Calls, url: str, extra: Mapping[str, str] | None = None) -> Iterator[Response]:
    from huggingface_hub import get_session, hf_raise_for_status

    headers = {**calls.headers(), **(extra or {})}
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        if response.is_error:
            response.read()  # for the sentence: a stream that is not read has no text
        hf_raise_for_status(response)
        yield response


def git_blob(data: bytes) -> str:
    """What git calls a file with these bytes: 40 hex digits."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _require_etag(response: Response, data: bytes, what: str) -> None:
    etag = response.headers.get("etag", "").removeprefix("W/").strip('"')
    if not _HEX.fullmatch(etag):
        return
    found = git_blob(data) if len(etag) == _GIT else hashlib.sha256(data).hexdigest()
    if found != etag:
        raise IntegrityError(what, etag, found, "It was damaged on its way. Repeat.")


def _commit(response: Response) -> str:
    """The commit that an answer is from; a file elsewhere is led to by one that says it."""
    for answer in (response, *reversed(response.history)):
        if commit := answer.headers.get(COMMIT):
            return str(commit)
    msg = f"{response.url.host} did not say which commit its answer is from ({COMMIT}). Is it a hub?"
    raise StorageError(msg)
