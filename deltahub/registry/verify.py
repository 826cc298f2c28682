"""Reading every byte of a registry again and comparing it with what was published."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from deltahub.errors import DeltaHubError, NotFoundError
from deltahub.manifest import digest_of
from deltahub.registry.registry import Registry
from deltahub.stores.base import object_key


def verify(
    registry: Registry, paths: Collection[str] | None = None, version: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """Re-hash deltas.

    Args:
        paths: which deltas, ``"namespace/name"``; None for all.
        version: which version of them; None for all.

    Yields:
        ``"namespace/name@v1"`` and what is damaged, in words; None where nothing is.

    Raises:
        NotFoundError: a delta or version that was asked for is not there.
    """
    intact: set[str] = set()  # digests of objects, which deltas share, that were read already
    for path in registry.names() if paths is None else paths:
        try:
            document = registry.document(path)
        except DeltaHubError as error:
            if paths is not None and isinstance(error, NotFoundError):
                raise
            yield path, str(error)
            continue
        for name in [document.resolve(version)] if version else list(document.versions):
            yield f"{path}@{name}", _damage(registry, document.versions[name].digest, intact)


def _damage(registry: Registry, digest: str, intact: set[str]) -> str | None:
    try:
        for entry in registry.manifest(digest).files:
            if entry.sha256 in intact:
                continue
            data = registry.store.read(object_key(entry.sha256))
            if digest_of(data) != f"sha256:{entry.sha256}":
                return f"{entry.path} is damaged: expected sha256:{entry.sha256}, found {digest_of(data)}"
            intact.add(entry.sha256)
    except NotFoundError as error:
        return f"a file is missing: {error.what}"
    except DeltaHubError as error:
        return str(error)
    return None
