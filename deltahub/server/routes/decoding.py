"""Base64 content of a file within a commit, decoded to disk incrementally."""

from __future__ import annotations

import binascii
import hashlib
from pathlib import Path
from typing import BinaryIO

from deltahub.server.errors import Refusal


class Content:
    """The content of one file, decoded to disk as it arrives.

    Args:
        file: the target path; must not exist yet.
        largest: maximum size in bytes.

    Attributes:
        size: bytes decoded so far.
    """

    def __init__(self, file: Path, largest: int) -> None:
        self.file, self._largest = file, largest
        self.size = 0
        self._digest = hashlib.sha256()
        self._rest = b""  # fewer than four characters
        self._writer: BinaryIO = file.open("xb")

    def feed(self, letters: bytes) -> None:
        """Decode the next characters.

        Raises:
            Refusal: they are not base64, or the file is too large.
        """
        text = self._rest + letters.replace(b"\\/", b"/")  # some JSON encoders escape the slash
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
        """Close the file after the last character.

        Raises:
            Refusal: the content is truncated.
        """
        self.close()
        if self._rest:
            raise Refusal(400, "A file of the commit is no base64: it ends too early.")

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, as 64 hex digits."""
        return self._digest.hexdigest()
