"""Downloads from web servers: streamed, limited in size, and resumable.

A download resumes only if a strong ETag proves that the file is unchanged (RFC 9110, If-Range); otherwise it starts again. The
bytes of a failed download are kept for a week for the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import requests
import urllib3

from deltahub.errors import IntegrityError, NotFoundError, StorageError, UnreachableError
from deltahub.files.atomic import CHUNK
from deltahub.files.permissions import make_folder
from deltahub.link import shown
from deltahub.sources.partial import forget_old
from deltahub.sources.web.client import Web, no_answer, too_slow
from deltahub.stores.base import Progress

_LONGEST_ETAG: Final = 64  # bytes; in hex it is part of a file name
_FIRST: Final = re.compile(r"bytes ([0-9]+)-")
_GONE: Final = (404, 410)
_PART: Final = (206, 416)


class BrokenError(Exception):
    """The response ended early."""


def small(web: Web, url: str, most: int) -> bytes | None:
    """Return the content of a URL; None if it does not exist.

    Args:
        most: maximum size in bytes.

    Raises:
        StorageError: it is larger, or the server refuses.
        UnreachableError: the server does not answer, or the connection keeps breaking.
    """
    for number in range(web.limits.tries):
        with contextlib.closing(web.get(url)) as response:
            if response.status_code in _GONE:
                return None
            try:
                return b"".join(pieces(response, url, most, web.limits.whole))
            except BrokenError as error:
                _wait(web, number, url, error)
    raise AssertionError  # the last attempt returns or raises


def start(web: Web, url: str, count: int) -> bytes:
    """Return the first bytes of a URL's content; fewer if it is shorter.

    Raises:
        NotFoundError: it does not exist.
        UnreachableError: the server does not answer, or the connection keeps breaking.
    """
    for number in range(web.limits.tries):
        with contextlib.closing(web.get(url, {"Range": f"bytes=0-{count - 1}"})) as response:
            if response.status_code in _GONE:
                raise NotFoundError(shown(url), (shown(url),))
            data = bytearray()
            try:
                for piece in pieces(response, url, web.limits.file, web.limits.whole):
                    data += piece
                    if len(data) >= count:
                        break
                return bytes(data[:count])
            except BrokenError as error:
                _wait(web, number, url, error)
    raise AssertionError  # the last attempt returns or raises


def pieces(response: requests.Response, url: str, most: int, seconds: float) -> Iterator[bytes]:
    """Yield the body of a response, piece by piece.

    Args:
        most: size limit in bytes.
        seconds: time limit for the whole body.

    Raises:
        StorageError: the body is larger than `most`.
        UnreachableError: the body did not end in time.
        BrokenError: the body is shorter than announced, or the connection broke.
    """
    announced = response.headers.get("Content-Length", "")
    length = int(announced) if announced.isdigit() and "Content-Encoding" not in response.headers else None
    if length is not None and length > most:
        raise _too_large(url, length, most)
    received, end = 0, time.monotonic() + seconds
    try:
        # read1 also returns the bytes received before the connection broke.
        while piece := response.raw.read1(CHUNK, decode_content=True):
            received += len(piece)
            if received > most:
                raise _too_large(url, received, most)
            if time.monotonic() > end:
                raise too_slow(url, seconds)
            yield piece
    except urllib3.exceptions.HTTPError as error:
        reason = str(error) if length is None else f"{received:,} of {length:,} bytes"
        raise BrokenError(reason) from error
    if length is not None and received < length:
        msg = f"{received:,} of {length:,} bytes"
        raise BrokenError(msg)


class Download:
    """Download of a file.

    Args:
        into: the target path; must not exist yet.
        kept: the folder for partial files of failed downloads.
        size: expected size in bytes, if known.
    """

    def __init__(self, web: Web, url: str, into: Path, kept: Path, size: int | None = None) -> None:
        self._web, self._url, self._into, self._size = web, url, into, size
        self._kept = kept
        self._key = hashlib.sha256(url.encode()).hexdigest()[:32]
        self._etag: str | None = None  # strong ETag of the bytes received; None if there is none

    def run(self, progress: Progress | None = None) -> None:
        """Download the file; on failure nothing is left at the target path.

        Raises:
            NotFoundError: it does not exist.
            IntegrityError: it is larger than expected.
            StorageError: it is larger than permitted.
            UnreachableError: the server does not answer, or the connection keeps breaking.
        """
        self._take_up()
        try:
            for number in range(self._web.limits.tries):
                try:
                    return self._go_on(progress)
                except BrokenError as error:
                    _wait(self._web, number, self._url, error)
        except BaseException as error:
            if isinstance(error, UnreachableError | KeyboardInterrupt):
                self._keep()
            self._into.unlink(missing_ok=True)
            raise
        raise AssertionError  # the last attempt returns or raises

    def _go_on(self, progress: Progress | None) -> None:
        """Download the missing bytes."""
        received = self._into.stat().st_size if self._etag and self._into.exists() else 0
        headers = {"Range": f"bytes={received}-", "If-Range": str(self._etag)} if received else {}
        with contextlib.closing(self._web.get(self._url, headers)) as response:
            if response.status_code in _GONE:
                raise NotFoundError(shown(self._url), (shown(self._url),))
            etag = response.headers.get("ETag", "")
            if response.status_code in _PART and not (received and _first(response) == received and etag == self._etag):
                self._etag = None  # not the requested range, or of another file: start again
                raise BrokenError("another part than was asked for")
            if response.status_code not in _PART:
                received = 0
            self._etag = etag if etag.startswith('"') and len(etag) <= _LONGEST_ETAG else None
            limit = self._web.limits.file if self._size is None else self._size
            try:
                with self._into.open("ab" if received else "wb") as file:
                    patience = self._web.limits.seconds(limit - received)
                    for piece in pieces(response, self._url, limit - received, patience):
                        file.write(piece)
                        if progress:
                            progress(len(piece))
            except _TooLargeError as error:
                if self._size is None:
                    raise
                expected, actual = f"{self._size} bytes", f"{received + error.found} bytes or more"
                raise IntegrityError(
                    shown(self._url), expected, actual, "Ask its owner to publish it again."
                ) from error

    def _take_up(self) -> None:
        """Resume an earlier download; only one process can claim it."""
        with contextlib.suppress(OSError, ValueError):
            forget_old(self._kept)
            for partial_file in self._kept.glob(f"{self._key}.*"):
                etag = bytes.fromhex(partial_file.suffix[1:]).decode()
                os.replace(partial_file, self._into)
                self._etag = etag
                return

    def _keep(self) -> None:
        if self._etag and self._into.exists():
            with contextlib.suppress(OSError):
                make_folder(self._kept.parent, self._kept)
                os.replace(self._into, self._kept / f"{self._key}.{self._etag.encode().hex()}")


class _TooLargeError(StorageError):
    def __init__(self, text: str, size: int) -> None:
        super().__init__(text, size)
        self.found = size


def _too_large(url: str, size: int, limit: int) -> _TooLargeError:
    return _TooLargeError(
        f"{shown(url)} has {size:,} bytes or more, and {limit:,} may be taken. If it is what you want, set "
        "DELTAHUB_MAX_FILE and DELTAHUB_MAX_DOWNLOAD to more.",
        size,
    )


def _first(response: requests.Response) -> int | None:
    """Return the position of the first byte of a partial response."""
    match = _FIRST.match(response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _wait(web: Web, number: int, url: str, error: BrokenError) -> None:
    """Wait before the next attempt; give up after the last one.

    Raises:
        UnreachableError: it was the last one.
    """
    if number == web.limits.tries - 1:
        raise no_answer(url, error) from error
    web.wait(number, None, shown(url), "broke off")
