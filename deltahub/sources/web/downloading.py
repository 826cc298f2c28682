"""Files from web servers: in pieces, no larger than they may be, and going on where they broke off.

A download goes on only where the server says by a strong ETag that the file is still the same (RFC 9110, If-Range); else it begins
anew. What a download got that failed for good is kept for a week and taken up by the next.
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
from deltahub.files import CHUNK
from deltahub.link import shown
from deltahub.rights import make_folder
from deltahub.sources.partial import forget_old
from deltahub.sources.web.asking import Web, no_answer, too_slow
from deltahub.stores.base import Progress

_LONGEST_ETAG: Final = 64  # bytes; as hex it is part of a file's name
_FIRST: Final = re.compile(r"bytes ([0-9]+)-")
_GONE: Final = (404, 410)
_PART: Final = (206, 416)


class BrokenError(Exception):
    """An answer broke off."""


def small(web: Web, url: str, most: int) -> bytes | None:
    """What is at an address; None if there is nothing.

    Args:
        most: bytes that it may have.

    Raises:
        StorageError: it has more, or the server refuses.
        UnreachableError: there is no answer, or it breaks off again and again.
    """
    for number in range(web.limits.tries):
        with contextlib.closing(web.get(url)) as response:
            if response.status_code in _GONE:
                return None
            try:
                return b"".join(pieces(response, url, most, web.limits.whole))
            except BrokenError as error:
                _wait(web, number, url, error)
    raise AssertionError  # the last try returns or raises


def start(web: Web, url: str, count: int) -> bytes:
    """The first bytes of what is at an address; fewer if it has no more.

    Raises:
        NotFoundError: there is nothing.
        UnreachableError: there is no answer, or it breaks off again and again.
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
    raise AssertionError  # the last try returns or raises


def pieces(response: requests.Response, url: str, most: int, seconds: float) -> Iterator[bytes]:
    """The body of an answer, piece by piece.

    Args:
        seconds: for all of it.

    Raises:
        StorageError: it has more bytes than `most`.
        UnreachableError: it has not ended in time.
        BrokenError: it has fewer than it announced, or broke off.
    """
    announced = response.headers.get("Content-Length", "")
    length = int(announced) if announced.isdigit() and "Content-Encoding" not in response.headers else None
    if length is not None and length > most:
        raise _too_large(url, length, most)
    received, end = 0, time.monotonic() + seconds
    try:
        while piece := response.raw.read1(CHUNK, decode_content=True):  # what came before it broke off comes, too
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
    """One file that is copied from an address.

    Args:
        into: where to; a new file.
        kept: the folder in which what was got is kept if it fails for good.
        size: the bytes that it must have, if that is known.
    """

    def __init__(self, web: Web, url: str, into: Path, kept: Path, size: int | None = None) -> None:
        self._web, self._url, self._into, self._size = web, url, into, size
        self._kept = kept
        self._key = hashlib.sha256(url.encode()).hexdigest()[:32]
        self._etag: str | None = None  # of what was got, if it is strong

    def run(self, progress: Progress | None = None) -> None:
        """Copy it; one that fails leaves nothing at its place.

        Raises:
            NotFoundError: there is nothing.
            IntegrityError: it has more bytes than it must.
            StorageError: it has more bytes than may be taken.
            UnreachableError: there is no answer, or it breaks off again and again.
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
        raise AssertionError  # the last try returns or raises

    def _go_on(self, progress: Progress | None) -> None:
        """Get what is missing."""
        there = self._into.stat().st_size if self._etag and self._into.exists() else 0
        headers = {"Range": f"bytes={there}-", "If-Range": str(self._etag)} if there else {}
        with contextlib.closing(self._web.get(self._url, headers)) as response:
            if response.status_code in _GONE:
                raise NotFoundError(shown(self._url), (shown(self._url),))
            etag = response.headers.get("ETag", "")
            if response.status_code in _PART and not (there and _first(response) == there and etag == self._etag):
                self._etag = None  # not the part that was asked for, or of another file: begin anew
                raise BrokenError("another part than was asked for")
            if response.status_code not in _PART:
                there = 0
            self._etag = etag if etag.startswith('"') and len(etag) <= _LONGEST_ETAG else None
            most = self._web.limits.file if self._size is None else self._size
            try:
                with self._into.open("ab" if there else "wb") as file:
                    patience = self._web.limits.seconds(most - there)
                    for piece in pieces(response, self._url, most - there, patience):
                        file.write(piece)
                        if progress:
                            progress(len(piece))
            except _TooLargeError as error:
                if self._size is None:
                    raise
                expected, found = f"{self._size} bytes", f"{there + error.found} bytes or more"
                raise IntegrityError(shown(self._url), expected, found, "Ask its owner to publish it again.") from error

    def _take_up(self) -> None:
        """Go on with what an earlier download got; only one process can take it."""
        with contextlib.suppress(OSError, ValueError):
            forget_old(self._kept)
            for found in self._kept.glob(f"{self._key}.*"):
                etag = bytes.fromhex(found.suffix[1:]).decode()
                os.replace(found, self._into)
                self._etag = etag
                return

    def _keep(self) -> None:
        if self._etag and self._into.exists():
            with contextlib.suppress(OSError):
                make_folder(self._kept.parent, self._kept)
                os.replace(self._into, self._kept / f"{self._key}.{self._etag.encode().hex()}")


class _TooLargeError(StorageError):
    def __init__(self, text: str, found: int) -> None:
        super().__init__(text, found)
        self.found = found


def _too_large(url: str, found: int, most: int) -> _TooLargeError:
    return _TooLargeError(
        f"{shown(url)} has {found:,} bytes or more, and {most:,} may be taken. If it is what you want, set "
        "DELTAHUB_MAX_FILE and DELTAHUB_MAX_DOWNLOAD to more.",
        found,
    )


def _first(response: requests.Response) -> int | None:
    """The place of the first byte of a part."""
    found = _FIRST.match(response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _wait(web: Web, number: int, url: str, error: BrokenError) -> None:
    """Wait before the next try; after the last one, give up.

    Raises:
        UnreachableError: it was the last one.
    """
    if number == web.limits.tries - 1:
        raise no_answer(url, error) from error
    web.wait(number, None, shown(url), "broke off")
