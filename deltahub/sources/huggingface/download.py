"""Downloads from a repo: one request per file, which also gives the commit."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import IntegrityError, StorageError
from deltahub.files.atomic import CHUNK
from deltahub.reference import Digest
from deltahub.registry.commit_message import commit_id
from deltahub.sources.huggingface.calls import COMMIT, Calls
from deltahub.sources.partial import resumed
from deltahub.stores.base import Progress
from deltahub.stores.retry import HUB_TIMEOUT
from deltahub.stores.threads import with_time_limit

if TYPE_CHECKING:
    from httpx2 import Response

_HEX: Final = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_GIT: Final = 40  # hex digits of a sha1
_PACK: Final = "x-deltahub-pack"
_MANIFEST: Final = "x-deltahub-manifest"
_SMALL: Final = 64 << 20  # maximum bytes of a manifest or card


@dataclass(frozen=True)
class Answer:
    """A small file at a revision.

    Attributes:
        commit: the commit of the revision, 40 hex digits.
        data: the content; None if the path does not exist.
        pack: path on the hub of a response with all files of a small delta; None if the hub gives none.
        manifest: path on the hub of the commit's manifest, for any kind of files; None if the hub gives none.
    """

    commit: str
    data: bytes | None
    pack: str | None = None
    manifest: str | None = None


def read(calls: Calls, repo: str, revision: str, path: str, doing: str) -> Answer:
    """Read a small file at a revision, and the commit of the revision, in one request.

    The content is verified against the ETag, which is git's sha1, or the sha256 of an LFS file.

    Raises:
        IntegrityError: the content does not match.
        NotFoundError: the repo or revision does not exist.
        UnreachableError: the hub did not answer.
        StorageError: the hub refused, or the file is not small.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    subject = f"{path} of {repo} in {calls.place}"

    def call() -> Answer:
        try:
            with _opened(calls, _url(calls, repo, revision, path)) as response:
                data = _all(response, _SMALL, subject)
                _require_etag(response, data, subject)
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
    partials: Path | None = None,
    sha256: str | None = None,
) -> str:
    """Download a file of a commit; an interrupted download is resumed, also by another process.

    Args:
        size: its size in bytes; further bytes are not accepted.
        partials: the folder for partial files; None to discard them.
        sha256: the expected digest, 64 hex digits; None if unknown.

    Returns:
        The sha256 of the downloaded bytes, 64 hex digits. The caller verifies it.

    Raises:
        NotFoundError: the commit has no such file.
        UnreachableError: the hub did not answer.
        StorageError: the hub refused.
    """
    subject, url = f"{path} of {calls.name}:{repo}@{commit}", _url(calls, repo, commit, path)
    with resumed(partials, sha256, into) as file:
        partial = _Copy(file, size, progress)

        def call() -> None:
            end = time.monotonic() + calls.patience(size)
            headers = {"Range": f"bytes={partial.position}-"} if partial.position else {}
            with ExitStack() as stack:
                response = with_time_limit(calls.patience(0), lambda: stack.enter_context(_opened(calls, url, headers)))
                if response.headers.get("content-range", "").partition("-")[0] != f"bytes {partial.position}":
                    partial.restart()
                for chunk in response.iter_bytes():  # unbuffered, so that none are lost with the connection
                    if not partial.add(chunk):
                        return
                    if partial.position < size and time.monotonic() > end:
                        msg = f"{partial.position:,} of {size:,} bytes after {calls.patience(size):.0f} s"
                        raise TimeoutError(msg)

        start = partial.take_up()
        if not start or start < size:
            calls.make(call, f"Pulling {repo}", subject, None)
        if start and partial.digest.hexdigest() != sha256:  # the partial file was not its start
            partial.restart()
            calls.make(call, f"Pulling {repo}", subject, None)
    return partial.digest.hexdigest()


class _Copy:
    """A file being downloaded.

    Args:
        file: open for reading and writing, at its start.
        size: maximum bytes.
        progress: counts every byte once, even if downloaded twice.
    """

    def __init__(self, file: BinaryIO, size: int, progress: Progress | None) -> None:
        self.file, self.size, self.progress = file, size, progress
        self.digest, self.position, self.reported = hashlib.sha256(), 0, 0

    def take_up(self) -> int:
        """Read and hash the bytes already in the file; discard them if there are too many.

        Returns:
            Their number.
        """
        while self.position <= self.size and (chunk := self.file.read(CHUNK)):
            self.digest.update(chunk)
            self.position += len(chunk)
        if self.position > self.size:
            self.restart()
        self._tell()
        return self.position

    def restart(self) -> None:
        """Discard the bytes written so far."""
        self.file.seek(0)
        self.file.truncate()
        self.digest, self.position = hashlib.sha256(), 0

    def add(self, chunk: bytes) -> bool:
        """Write a chunk; return False once the file exceeds its size, so that its digest cannot match."""
        self.file.write(chunk)
        self.digest.update(chunk)
        self.position += len(chunk)
        self._tell()
        return self.position <= self.size

    def _tell(self) -> None:
        if self.progress and self.position > self.reported:
            self.progress(self.position - self.reported)
            self.reported = self.position


def read_pack(calls: Calls, repo: str, path: str, size: int) -> bytes:
    """Download all files of a small delta at once.

    Args:
        path: given by the hub; requested from the hub itself only.
        size: of all files together.

    Raises:
        NotFoundError: it is no longer there.
        UnreachableError: the hub did not answer.
        StorageError: the hub refused, or sends more bytes.
    """
    subject = f"the files of {repo} in {calls.place}"

    def call() -> bytes:
        with _opened(calls, f"{calls.endpoint}/{path.lstrip('/')}") as response:
            return _all(response, size, subject)

    return calls.make(call, f"Pulling {repo}", subject, size)


def read_manifest(calls: Calls, repo: str, commit: str, path: str) -> Manifest:
    """Read the manifest of a commit on a DeltaHub hub, where the commit id derives from the manifest's digest.

    Args:
        path: given by the hub; requested from the hub itself only.

    Raises:
        IntegrityError: it is not the manifest of that commit.
        UnreachableError: the hub did not answer.
        StorageError: the hub refused.
    """
    subject = f"the manifest of {repo} in {calls.place}"

    def call() -> bytes:
        with _opened(calls, f"{calls.endpoint}/{path.lstrip('/')}") as response:
            return _all(response, _SMALL, subject)

    data = calls.make(call, f"Looking up {repo}", f"{calls.name}:{repo}@{commit}")
    digest = Digest.of(data)
    if commit_id(digest) != commit:
        raise IntegrityError(subject, f"sha256:{commit}...", digest, "Pull it again.")
    return Manifest.from_bytes(data, digest)


def _url(calls: Calls, repo: str, revision: str, path: str) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repo, path, revision=revision, endpoint=calls.endpoint)


def _all(response: Response, most: int, subject: str) -> bytes:
    data = bytearray()
    for chunk in response.iter_bytes():
        data += chunk
        if len(data) > most:
            msg = f"{subject} has more than {most:,} bytes. Look at what is there."
            raise StorageError(msg)
    return bytes(data)


@contextmanager
def _opened(calls: Calls, url: str, extra: Mapping[str, str] | None = None) -> Iterator[Response]:
    from huggingface_hub import get_session, hf_raise_for_status

    headers = {**calls.headers(), **(extra or {})}
    with get_session().stream("GET", url, headers=headers, timeout=HUB_TIMEOUT) as response:
        if response.is_error:
            response.read()  # for the error message: an unread stream has no text
        hf_raise_for_status(response)
        yield response


def git_blob(data: bytes) -> str:
    """Return git's blob id of a file with these bytes: 40 hex digits."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _require_etag(response: Response, data: bytes, subject: str) -> None:
    etag = response.headers.get("etag", "").removeprefix("W/").strip('"')
    if not _HEX.fullmatch(etag):
        return
    digest = git_blob(data) if len(etag) == _GIT else hashlib.sha256(data).hexdigest()
    if digest != etag:
        raise IntegrityError(subject, etag, digest, "It was damaged on its way. Repeat.")


def _commit(response: Response) -> str:
    """Return the commit of a response; for a file stored elsewhere, of the redirect to it."""
    for answer in (response, *reversed(response.history)):
        if commit := answer.headers.get(COMMIT):
            return str(commit)
    msg = f"{response.url.host} did not say which commit its answer is from ({COMMIT}). Is it a hub?"
    raise StorageError(msg)
