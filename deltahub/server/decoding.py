"""The content of a file that comes in base64 within a commit, decoded to the disk letter by letter."""

from __future__ import annotations

import binascii
import hashlib
from pathlib import Path
from typing import BinaryIO

from deltahub.server.refusals import Refusal


class Content:
    """The content of one file, decoded to the disk as it comes.

    Args:
        file: where it is put; nothing may be there yet.
        largest: bytes that it may have.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, file: Path, largest: int) -> None:
        self.file, self._largest = file, largest
        self.size = 0
        self._digest = hashlib.sha256()
        self._rest = b""  # fewer than four letters
        self._writer: BinaryIO = file.open("xb")

    def feed(self, letters: bytes) -> None:
        """Take the next letters of the text.

        Raises:
            Refusal: they are no base64, or too many.
        """
        text = self._rest + letters.replace(b"\\/", b"/")  # as some write a slash in JSON
        whole = len(text) - len(text) % 4
        self._rest = text[whole:]
        if not whole:
            return
        try:
            data = binascii.a2b_base64(text[:whole], strict_mode=True)
        except binascii.Error as error:
            self.close()
            raise Refusal(400, f"A file of the commit is no base64: {error}.") from error
        self.size += len(data)
        if self.size > self._largest:
            self.close()
            raise Refusal(413, f"A file of the commit is larger than the {self._largest:,} bytes that this hub takes.")
        self._digest.update(data)
        self._writer.write(data)

    def finish(self) -> None:
        """Close the file, when all of the text came.

        Raises:
            Refusal: it ends too early.
        """
        self.close()
        if self._rest:
            raise Refusal(400, "A file of the commit is no base64: it ends too early.")

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    @property
    def sha256(self) -> str:
        """Of the bytes so far, 64 hex digits."""
        return self._digest.hexdigest()
