"""Parser for the body of a commit: one JSON object per line, with small files in base64.

A line may be as large as the files of the commit. So lines are parsed incrementally, and the value of ``"content":`` is decoded
to a file as it arrives; only the rest of a line, a path and a few words, is held in memory.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from deltahub.files.documents import parse
from deltahub.server.errors import Refusal
from deltahub.server.file_names import LONGEST


class Content:
    """The content of a file, decoded to disk as it arrives.

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
        length = len(text) - len(text) % 4
        self._rest = text[length:]
        if not length:
            return
        try:
            data = binascii.a2b_base64(text[:length], strict_mode=True)
        except binascii.Error as error:
            self.close()
            raise Refusal(400, f"A file of the commit is not base64: {error}.") from error
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
            raise Refusal(400, "A file of the commit is not base64: it ends too early.")

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, as 64 hex digits."""
        return self._digest.hexdigest()


_CONTENT: Final = re.compile(rb'"content"\s*:\s*"')  # in JSON, these bytes cannot occur inside a string
_LONGEST_LINE: Final = 256 << 10  # bytes of a line without its content
_OVERLAP: Final = 64  # bytes in which a match of _CONTENT may have begun
_MOST: Final = 25_000  # operations per commit
_MOST_WORDS: Final = 8 << 20  # bytes of all lines without their content
_OPERATION: Final = 1000  # approximate bytes of memory per operation, besides its line


@dataclass(frozen=True)
class Added:
    """A file sent within the commit.

    Attributes:
        path: its name in the repository.
        sha256: 64 hex digits.
        size: in bytes.
        file: the local file with its content.
    """

    path: str
    sha256: str
    size: int
    file: Path


@dataclass(frozen=True)
class Named:
    """A file uploaded before, or already in the repository.

    Attributes:
        path: its name in the repository.
        sha256: 64 hex digits.
        size: in bytes; None if the commit does not give it.
    """

    path: str
    sha256: str
    size: int | None


@dataclass(frozen=True)
class Deleted:
    """A file or folder to delete.

    Attributes:
        path: its name in the repository.
        folder: whether it is a folder.
    """

    path: str
    folder: bool


Operation = Added | Named | Deleted


@dataclass
class Operations:
    """The operations of a commit in order, and its message.

    Attributes:
        summary: its title.
        description: the rest of its message.
        parent: required head of the branch, as a commit id or its beginning; None for any.
        listed: the operations.
    """

    summary: str = ""
    description: str = ""
    parent: str | None = None
    listed: list[Operation] = field(default_factory=list)


class Parser:
    """Incremental parser for the body of a commit.

    Args:
        spool: a folder for the files sent within it.
        largest: maximum size of a file in bytes.
    """

    def __init__(self, spool: Path, largest: int) -> None:
        self.operations = Operations()
        self._spool, self._largest = spool, largest
        self._line = bytearray()  # the current line without its content
        self._content: Content | None = None  # the content being read
        self._line_content: Content | None = None  # the content already read in the current line
        self._files = self._lines = self._searched = self._words = 0

    @property
    def bytes_in_use(self) -> int:
        """Approximate bytes of memory that the commit takes so far."""
        return len(self._line) + self._words + _OPERATION * len(self.operations.listed)

    def feed(self, block: bytes) -> None:
        """Parse the next bytes of the body.

        Raises:
            Refusal: they are not a valid commit.
        """
        position = 0
        while position < len(block):
            position = self._feed_content(block, position) if self._content else self._feed_line(block, position)

    def _feed_content(self, block: bytes, position: int) -> int:
        assert self._content is not None
        end = block.find(b'"', position)
        self._content.feed(block[position : end if end >= 0 else len(block)])
        if end < 0:
            return len(block)
        self._content.finish()
        self._content, self._line_content, self._searched = None, self._content, len(self._line)
        return end  # the quote ends the empty string left in the line

    def _feed_line(self, block: bytes, position: int) -> int:
        end = block.find(b"\n", position)
        length_before = len(self._line)
        self._line += block[position : end if end >= 0 else len(block)]
        if content := _CONTENT.search(self._line, max(length_before - _OVERLAP, self._searched)):
            length = content.end() - length_before
            del self._line[content.end() :]
            if self._line_content:
                raise Refusal(400, "A line of the commit has content twice.")
            self._files += 1
            self._content = Content(self._spool / f"file-{self._files}", self._largest)
            return position + length
        if len(self._line) > _LONGEST_LINE:
            raise Refusal(413, f"A line of the commit is longer than {_LONGEST_LINE:,} bytes without its content.")
        if end < 0:
            return len(block)
        self._end_line()
        return end + 1

    def finish(self) -> Operations:
        """Return the commit after the end of its body.

        Raises:
            Refusal: it is incomplete or not a commit.
        """
        if self._content:
            self._content.close()
            raise Refusal(400, "The commit ends within the content of a file.")
        self._end_line()
        if not self._lines:
            raise Refusal(400, "The commit is empty: expected a line with the key 'header'.")
        return self.operations

    def close(self) -> None:
        """Close an open file when the body is abandoned."""
        if self._content:
            self._content.close()

    def _end_line(self) -> None:
        line, content = bytes(self._line).strip(), self._line_content
        self._line.clear()
        self._line_content, self._searched = None, 0
        if not line:
            return
        self._lines += 1
        self._words += len(line)
        if self._lines > _MOST or self._words > _MOST_WORDS:
            limits = f"{_MOST:,} lines, or {_MOST_WORDS:,} bytes of them without the content of files"
            raise Refusal(413, f"The commit has more than {limits}. Make several commits.")
        try:
            document = parse(line)
        except ValueError as error:
            raise Refusal(400, f"Line {self._lines} of the commit is not JSON: {error}.") from error
        value = document.get("value") if isinstance(document, dict) else None
        if not isinstance(value, dict):
            raise Refusal(400, f"Line {self._lines} of the commit is not an object with 'key' and 'value'.")
        self._take(document.get("key"), value, content)

    def _take(self, key: Any, value: dict[str, Any], content: Content | None) -> None:
        if key == "header":
            self.operations.summary, self.operations.description = _text(value, "summary"), _text(value, "description")
            self.operations.parent = _text(value, "parentCommit") or None
            return
        path = _text(value, "path")
        if len(path) > LONGEST:  # checked early: many paths are held at once
            raise Refusal(400, f"A path of the commit has {len(path):,} letters; {LONGEST:,} are the most.")
        if key == "file":
            if content is None or value.get("encoding", "base64") != "base64" or "content" not in value:
                raise Refusal(400, f"The file {path!r} of the commit has no content in base64.")
            self.operations.listed.append(Added(path, content.sha256, content.size, content.file))
        elif key == "lfsFile":
            self.operations.listed.append(_named_file(path, value))
        elif key in ("deletedFile", "deletedFolder"):
            self.operations.listed.append(Deleted(path.strip("/"), key == "deletedFolder"))
        else:
            raise Refusal(400, f"Line {self._lines} of the commit has the key {key!r}, which is unknown.")


def _named_file(path: str, value: dict[str, Any]) -> Named:
    oid, size = value.get("oid"), value.get("size")
    if value.get("algo", "sha256") != "sha256" or not is_oid(oid):
        raise Refusal(400, f"The file {path!r} of the commit needs an oid of 64 hex digits, its sha256.")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
        raise Refusal(400, f"The size of the file {path!r} of the commit is not a number of bytes.")
    return Named(path, str(oid), size)


def is_oid(value: Any) -> bool:
    """Return whether a value is a SHA-256 of 64 hex digits."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name) or ""
    if not isinstance(text, str):
        raise Refusal(400, f"{name!r} in the commit must be a text.")
    return text
