"""References: the names of deltas.

    [source:]namespace/name[@version]

    DeltaHub/sst2-t5-base              the newest version, from the first source that has it
    local:DeltaHub/sst2-t5-base@v3     one version in one source
    acme/ner@champion                  the version of an alias; acme/ner@release/1.0 too
    acme/ner@sha256:3f9a51c0ffee       one content, by 12 or more digits of its digest
    s3://bucket/deltas:acme/ner        in a registry without a name as a source; so is /mnt/deltas:acme/ner

Namespaces and names are plain ASCII, so that no two can look alike. They follow the rules of the Hugging Face Hub, so a name valid
here is valid there. A name without a namespace is in `DeltaHub`, or in `DELTAHUB_NAMESPACE`.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from typing import Final, Self

from deltahub.errors import ReferenceSyntaxError

DEFAULT_NAMESPACE: Final = "DeltaHub"
LATEST: Final = "latest"
MAIN: Final = "main"  # the line of versions that ends at "latest"

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_PLACED: Final = re.compile(
    r"(?P<place>(?:(?!https?://)[a-z][a-z0-9+.-]*://|[./~]).*?):(?P<rest>[^:@]+(?:@.*)?)", re.DOTALL
)
_SOURCE: Final = re.compile(r"[a-z][a-z0-9-]{1,31}")
_VERSION: Final = re.compile(r"v[1-9][0-9]{0,8}")
_ALGORITHM: Final = "sha256:"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{12,64}")
_WHOLE_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MARK: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._#+@=,-]{0,94}[A-Za-z0-9_#+@=,])?")  # a part of an alias
_LONGEST_MARK: Final = 200
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,126}[A-Za-z0-9._/])?")  # "sst2-" removes a tag
_VALUE: Final = re.compile(r"[A-Za-z0-9._/+:-](?:[A-Za-z0-9 ._/+:-]{0,126}[A-Za-z0-9._/+:])?")


class Digest(str):
    """The sha256 of some bytes as text: ``"sha256:"`` and 64 hex digits.

    ``str(digest)`` is a plain string, for serialisers that take no subclasses, such as ``yaml.safe_dump``.

    Raises:
        ReferenceSyntaxError: the text is not a whole digest.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check and keep the text."""
        if not _WHOLE_DIGEST.fullmatch(text):
            msg = f"{text!r:.100} is not a digest: expected 'sha256:' and 64 of the digits 0-9 a-f."
            raise ReferenceSyntaxError(msg)
        return super().__new__(cls, text)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the digest of `data`."""
        return cls.of_hex(hashlib.sha256(data).hexdigest())

    @classmethod
    def of_hex(cls, hex_digits: str) -> Self:
        """Return the digest with these 64 hex digits."""
        return cls(f"{_ALGORITHM}{hex_digits}")

    @property
    def hex(self) -> str:
        """The 64 hex digits."""
        return self[len(_ALGORITHM) :]

    @property
    def short(self) -> str:
        """The beginning that people are shown: ``"sha256:"`` and 12 hex digits."""
        return self[: len(_ALGORITHM) + 12]


class DeltaPath(str):
    """The name of a delta with its namespace: ``"DeltaHub/sst2-t5-base"``.

    Raises:
        ReferenceSyntaxError: the text is not a namespace and a name, with one slash between them.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check and keep the text."""
        namespace, slash, name = text.rpartition("/")
        if not slash:
            msg = f"{text!r} is not the name of a delta: expected namespace/name."
            raise ReferenceSyntaxError(msg)
        check_name(namespace, "namespace")
        check_name(name, "name")
        return super().__new__(cls, text)

    @property
    def namespace(self) -> str:
        """The team or person, e.g. ``"DeltaHub"``."""
        return self.partition("/")[0]

    @property
    def name(self) -> str:
        """The delta within the namespace."""
        return self.partition("/")[2]


def as_delta_path(text: str) -> DeltaPath | None:
    """Return the path that a text is; None if it is not valid, as a name in another hub's list may be."""
    try:
        return DeltaPath(text)
    except ReferenceSyntaxError:
        return None


@dataclass(frozen=True)
class Reference:
    """A delta's name, with an optional source and version.

    Attributes:
        path: the name with its namespace.
        source: a source's name, a registry's folder or s3:// address, or None for the first that has the delta.
        version: ``"v3"``, an alias or branch such as ``"release/1.0"``, ``"sha256:..."``, or None for ``"latest"``.
    """

    path: DeltaPath
    source: str | None = field(default=None, kw_only=True)
    version: str | None = field(default=None, kw_only=True)

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference.

        Raises:
            ReferenceSyntaxError: the text is not a reference; the message says which part and why.
        """
        if text.lower().startswith(("http://", "https://")):  # not shown, since it may hold a secret
            msg = (
                "A link names no delta of a source, which is wanted here: [source:]namespace/name[@version]. "
                "Pull it, and push its folder to a registry to give it a name."
            )
            raise ReferenceSyntaxError(msg)
        if placed := _PLACED.fullmatch(text):
            return replace(cls.parse(placed["rest"]), source=placed["place"])
        if is_path(text):
            msg = (
                f"{text!r} is a path; expected a delta's name, [source:]namespace/name[@version]. "
                "A folder must be pushed to have a name: deltahub push FOLDER."
            )
            raise ReferenceSyntaxError(msg)
        if is_digest(text):
            msg = f"A digest alone does not name a delta. Name the delta too: namespace/name@{text}"
            raise ReferenceSyntaxError(msg)
        rest, at, version = text.partition("@")
        source, colon, path = rest.rpartition(":")
        if colon:
            check_source(source)
        return cls(
            DeltaPath(path if "/" in path else f"{default_namespace()}/{path}"),
            source=source if colon else None,
            version=check_version(version) if at else None,
        )

    @property
    def unplaced(self) -> Reference | None:
        """The reference if it names no source, so that the sources are searched for it; else None."""
        return None if self.source else self

    @property
    def cache_key(self) -> str:
        """The key of its meaning in a cache."""
        return str(self)

    @property
    def cache_folder(self) -> str:
        """The folder of its meaning in a cache."""
        return self.path

    def at(self, version: str | None) -> Reference:
        """Return the same delta at another version."""
        return replace(self, version=version)

    def anywhere(self) -> Reference:
        """Return the same reference without its source."""
        return replace(self, source=None)

    def __str__(self) -> str:
        source = f"{self.source}:" if self.source else ""
        version = f"@{self.version}" if self.version else ""
        return f"{source}{self.path}{version}"


def default_namespace() -> str:
    """Return the namespace for names given without one."""
    return os.environ.get("DELTAHUB_NAMESPACE") or DEFAULT_NAMESPACE


def is_path(text: str) -> bool:
    """Return whether `text` is the path of a folder, and not a name in the registry of that folder."""
    return text.startswith((".", "/", "~")) and not is_placed(text)


def is_placed(text: str) -> bool:
    """Return whether `text` names a delta in a registry by the registry's folder or s3:// address."""
    return _PLACED.fullmatch(text) is not None


def check_name(text: str, kind: str = "name") -> str:
    """Return `text` if it is a valid namespace or name.

    Raises:
        ReferenceSyntaxError: it is not valid.
    """
    rule = "up to 96 letters, digits, '-', '_' and '.' (plain ASCII), starting and ending with a letter or digit"
    _check(text, _NAME, kind, rule)
    _refuse_reserved(text, kind)
    return text


def _refuse_reserved(text: str, kind: str) -> None:
    if ".." in text or "--" in text or text.lower().endswith((".git", ".ipynb", ".json", ".lock")):
        msg = f"{text!r} cannot be a {kind}: '..', '--' and the endings .git, .ipynb, .json and .lock are reserved."
        raise ReferenceSyntaxError(msg)


def check_source(text: str) -> str:
    """Return `text` if it is a valid name of a source.

    Raises:
        ReferenceSyntaxError: it is not valid.
    """
    _check(text, _SOURCE, "source", "2 to 32 lower-case letters, digits and '-', starting with a letter, e.g. 'local'")
    return text


def check_version(text: str) -> str:
    """Return `text` if it is a valid version, alias or digest.

    Raises:
        ReferenceSyntaxError: it is not valid.
    """
    if _DIGEST.fullmatch(text) or _VERSION.fullmatch(text):
        return text
    if text.startswith("sha256:"):
        msg = f"{text!r} is not a digest: expected 'sha256:' and 12 to 64 of the digits 0-9 a-f."
        raise ReferenceSyntaxError(msg)
    return _check_mark(text, "version or alias")


def check_alias(text: str) -> str:
    """Return `text` if it is valid for a user's alias: a git tag of plain ASCII, such as ``"release/1.0+cpu"``.

    Raises:
        ReferenceSyntaxError: it is not well formed, or is reserved.
    """
    if re.fullmatch(r"v[0-9]+", text.lower()):
        msg = f"{text!r} cannot be an alias: 'v1', 'v2', ... are version numbers."
        raise ReferenceSyntaxError(msg)
    return check_git_tag(text)


def check_git_tag(text: str) -> str:
    """Return `text` if a hub's client may set a tag of this name; unlike an alias, it may be a version number.

    Raises:
        ReferenceSyntaxError: it is not well formed, or is reserved.
    """
    lower = text.lower()
    if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", lower):
        msg = f"{text!r} cannot be an alias: it could be mistaken for a commit or a digest."
        raise ReferenceSyntaxError(msg)
    if lower.startswith(("sha256", "refs/")) or lower in (LATEST, MAIN):
        msg = f"{text!r} cannot be an alias: 'sha256:...', 'refs/...', 'latest' and 'main' are reserved."
        raise ReferenceSyntaxError(msg)
    return _check_mark(text, "alias")


def _check_mark(text: str, kind: str) -> str:
    if len(text) > _LONGEST_MARK or not all(_MARK.fullmatch(part) for part in text.split("/")):
        expected = (
            f"parts of up to 96 letters, digits, '.', '_', '-', '#', '+', '@', '=' and ',' (plain ASCII), each starting with "
            f"a letter or digit, '/' between them, {_LONGEST_MARK} characters at most"
        )
        raise _not_formed(text, kind, expected)
    for part in text.split("/"):
        _refuse_reserved(part, kind)
    return text


def check_tag(text: str) -> str:
    """Return `text` if it is a valid tag: a label such as ``sst2`` or a pair such as ``task=sst2``.

    Raises:
        ReferenceSyntaxError: it is not valid.
    """
    key, equals, value = text.partition("=")
    rule = "a label or key=value of letters, digits and ._/- (plain ASCII, 128 at most, not ending with '-')"
    _check(key, _LABEL, "tag", rule)
    if equals:
        _check(value, _VALUE, f"value of the tag {key!r}", rule)
    if ".." in text:
        msg = f"{text!r} cannot be a tag: '..' is reserved."
        raise ReferenceSyntaxError(msg)
    return text


def _check(text: str, rule: re.Pattern[str], kind: str, expected: str) -> None:
    if not rule.fullmatch(text):
        raise _not_formed(text, kind, expected)


def _not_formed(text: str, kind: str, expected: str) -> ReferenceSyntaxError:
    strange = next((char for char in text if not char.isascii()), None)
    hint = (
        f" It holds {strange!r} (U+{ord(strange):04X}), which is not an ASCII letter, though it may look like one."
        if strange
        else ""
    )
    article = "an" if kind.startswith(tuple("aeiou")) else "a"
    return ReferenceSyntaxError(f"{text!r} cannot be {article} {kind}: expected {expected}.{hint}")


def is_version(text: str) -> bool:
    """Return whether `text` is a version number, e.g. ``"v3"``."""
    return _VERSION.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Return whether `text` is a content digest or a digest prefix."""
    return _DIGEST.fullmatch(text) is not None
