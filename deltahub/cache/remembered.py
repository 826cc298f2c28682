"""The meanings of pulled names, so that they load again without the network.

    names/<namespace>/<name>/<16>.json     in the cache: a pulled reference, its exact reference, and its digest
    names/.links/<16>.json                 the same for a link

An exact reference means the same for ever; for a movable one, such as an alias, the file has its last seen meaning. Each has a file
of its own, replaced as a whole, so that any number of processes may write. A missing or damaged file only loses its own entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from deltahub.cache.cache import MANIFEST, Cache
from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import DeltaHubError
from deltahub.files.atomic import read_file
from deltahub.link import Link, parse_reference
from deltahub.reference import Digest, Reference
from deltahub.text.suggestions import closest

NAMES: Final = "names"
_ANY: Final = "@*"  # after a name: the version pulled last


@dataclass(frozen=True)
class Meaning:
    """The meaning of a reference.

    Attributes:
        reference: the exact reference, which means the same for ever.
        digest: the digest of its manifest.
        place: the source and its location, as in `Source.place`.
    """

    reference: Reference | Link
    digest: Digest
    place: str


class CachedNames:
    """The names by which the deltas in a cache were pulled."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def recall(self, reference: Reference | Link) -> Meaning | None:
        """Return the meaning of a reference at its last pull; None if it was never pulled or its record is lost."""
        meaning = self._read(self._file(reference, reference.cache_key), reference.cache_key)
        if meaning and isinstance(reference, Link):  # the record lacks the parts of the address that may be secret
            return replace(meaning, reference=reference.pinned(meaning.digest))
        return meaning

    def origin(self, path: str) -> Meaning | None:
        """Return the meaning of a name at its last pull without a source, at any version; None if it was never pulled so."""
        reference = Reference.parse(path)
        return self._read(self._file(reference, f"{path}{_ANY}"), f"{path}{_ANY}")

    def remember(self, reference: Reference | Link, meaning: Meaning) -> None:
        """Record the current meaning of a reference; without write permission, record nothing."""
        names = [(name, name.cache_key) for name in (reference, meaning.reference)]
        if reference.source is None:
            names.append((reference, f"{reference.path}{_ANY}"))
        for name, key in names:
            file = self._file(name, key)
            recorded = self._read(file, key)
            if recorded is None or _facts(recorded) != _facts(meaning):
                with contextlib.suppress(OSError), self._cache.stage() as stage:
                    document = {
                        "asked": key,
                        "is": str(meaning.reference),
                        "digest": meaning.digest,
                        "place": meaning.place,
                    }
                    (stage / "name").write_text(json.dumps(document), "utf-8")
                    self._cache.place_file(stage / "name", file)

    def lookup(self, exact: Reference) -> tuple[Digest, Manifest] | None:
        """Return the digest and manifest of an exact reference, if it was pulled before and is cached."""
        meaning = self.recall(exact)
        manifest = self.manifest(meaning.digest) if meaning else None
        return (meaning.digest, manifest) if meaning and manifest else None

    def manifest(self, digest: Digest) -> Manifest | None:
        """Return the manifest of a cached delta without checking its files; None if it is missing or damaged."""
        try:
            return Manifest.from_bytes(read_file(self._cache.folder(digest) / MANIFEST), digest)
        except (OSError, DeltaHubError):
            return None

    def by_digest(self) -> dict[Digest, set[str]]:
        """Return the exact references that each digest was pulled by."""
        references: dict[Digest, set[str]] = {}
        for file in (self._cache.root / NAMES).glob("*/*/*.json"):
            if meaning := _meaning(_document(file)):
                references.setdefault(meaning.digest, set()).add(str(meaning.reference))
        return references

    def knows(self, path: str) -> bool:
        """Check whether a delta of this name was ever pulled, from any source."""
        return (self._cache.root / NAMES / path).is_dir()

    def namespaces(self) -> set[str]:
        """Return the namespaces of all deltas pulled so far, from any source."""
        return {folder.name for folder in (self._cache.root / NAMES).glob("[!.]*")}

    def sources(self, namespace: str) -> frozenset[str]:
        """Return the sources from which anything in a namespace was pulled, ignoring case."""
        root = self._cache.root / NAMES
        spaces = [folder for folder in root.glob("[!.]*") if folder.name.lower() == namespace.lower()]
        meanings = (_meaning(_document(file)) for folder in spaces for file in folder.glob("*/*.json"))
        references = (meaning.reference for meaning in meanings if meaning)
        return frozenset(name.source for name in references if name.source)

    def near(self, path: str) -> tuple[str, ...]:
        """Return references that load from the cache and resemble a name, best first."""
        root = self._cache.root / NAMES
        cached_names = {f"{folder.parent.name}/{folder.name}" for folder in root.glob("[!.]*/*")}
        names = (path,) if path in cached_names else closest(path, sorted(cached_names), limit=3, cutoff=0.7)
        return tuple(key for name in names for key in sorted(self._loading((root / name).glob("*.json"))))

    def _loading(self, files: Iterable[Path]) -> Iterable[str]:
        for file in files:
            document = _document(file)
            meaning = _meaning(document)
            if meaning and not document["asked"].endswith(_ANY) and self.manifest(meaning.digest):
                yield document["asked"]

    def _file(self, reference: Reference | Link, key: str) -> Path:
        return (
            self._cache.root / NAMES / reference.cache_folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        )

    def _read(self, file: Path, key: str) -> Meaning | None:
        document = _document(file)
        # On a case-insensitive file system, the file may belong to another name.
        return _meaning(document) if document.get("asked") == key else None


def _facts(meaning: Meaning) -> tuple[str, Digest, str]:
    return str(meaning.reference), meaning.digest, meaning.place


def _document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_file(file))
    except (DeltaHubError, OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _meaning(document: dict[str, Any]) -> Meaning | None:
    try:
        return Meaning(parse_reference(document["is"]), Digest(document["digest"]), str(document["place"]))
    except (DeltaHubError, LookupError, TypeError, AttributeError):
        return None
