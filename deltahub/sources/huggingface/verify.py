"""Verification of a hub from outside: every file is fetched again and compared with the published digest.

The cache is left aside. Only the hub itself can repair damage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from deltahub.checkpoint.manifest import FileEntry
from deltahub.errors import DeltaHubError, IntegrityError, UnreachableError
from deltahub.files.atomic import scratch
from deltahub.reference import DeltaPath, Reference
from deltahub.registry.search.conditions import Query, Search
from deltahub.sources.base import Resolved
from deltahub.sources.huggingface.source import HuggingFace


def verify(
    source: HuggingFace, paths: Collection[DeltaPath] | None = None, version: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """Fetch every file of deltas again; files that versions share are fetched once.

    Args:
        paths: the deltas to verify; None for all that the hub lists.
        version: the version to verify; None for all.

    Yields:
        ``"namespace/name@v1"`` and a description of all its damage; None if it is intact.

    Raises:
        NotFoundError: a requested delta or version does not exist.
        UnreachableError: the hub does not answer.
    """
    intact: set[str] = set()
    listed = paths if paths is not None else _names(source)
    for path in listed:
        document = source.document(path)
        for name in [document.resolve(version)] if version else list(document.versions):
            try:
                damage = "; ".join(_damages(_resolved(source, path, name), intact)) or None
            except UnreachableError:
                raise
            except DeltaHubError as error:
                damage = str(error)
            yield f"{document.name}@{name}", damage


def _names(source: HuggingFace) -> list[DeltaPath]:
    return [DeltaPath(entry.name) for entry in source.search(Search(Query(sort="name")))[0]]


def _resolved(source: HuggingFace, path: DeltaPath, version: str) -> Resolved:
    return source.uncached().resolve(Reference(path, source=source.name, version=version))


def _damages(resolved: Resolved, intact: set[str]) -> Iterator[str]:
    for entry in resolved.manifest.files:
        if entry.sha256 not in intact:
            with scratch() as folder:
                if damage := _damage(resolved, entry, folder / "file"):
                    yield damage
                else:
                    intact.add(entry.sha256)


def _damage(resolved: Resolved, entry: FileEntry, into: Path) -> str | None:
    try:
        resolved.fetch(entry, into, None)
    except IntegrityError as error:
        return str(error)
    return None
