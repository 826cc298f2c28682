"""Copies of deltas from a DeltaHub hub into a registry: all versions, aliases, tags and history, all bytes verified."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from deltahub.errors import ConfigError, ConflictError, IntegrityError, NotFoundError
from deltahub.files.atomic import scratch
from deltahub.registry.amend import DESCRIPTION
from deltahub.registry.case_collisions import Names, refuse_twin
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import CARD_FACTS, Version, summary_of
from deltahub.registry.mirror import Copied
from deltahub.registry.reconcile import merged
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Query, Search
from deltahub.sources.huggingface import HuggingFace
from deltahub.sources.huggingface.history import names
from deltahub.stores.base import Progress, Source


def copy_from_hub(
    source: HuggingFace, target: Registry, paths: Collection[str] | None = None, progress: Progress | None = None
) -> Iterator[Copied]:
    """Copy deltas one by one; existing objects are not fetched again, so an interrupted copy resumes.

    Args:
        paths: which to copy, ``"namespace/name"``; None for all deltas that the hub lists.

    Raises:
        ConfigError: it is another hub of the protocol, which has no history in a form for a registry.
        ConflictError: a version has other content in the target, or the name leads to another delta there.
        IntegrityError: the hub sends other bytes. Deltas copied before stay.
        NotFoundError: the hub has no such delta.
    """
    existing_names = Names(target)
    for path in paths if paths is not None else [entry.name for entry in source.search(Search(Query(sort="name")))[0]]:
        hub_document = names(source.calls, path, f"Copying {path}").document
        if hub_document is None:
            msg = (
                f"{source.place} is not a hub of DeltaHub, so it does not provide the whole history of {path}. Pull what you want of it, and "
                "push it to the registry."
            )
            raise ConfigError(msg)
        if not (hub_document.versions or hub_document.removed):
            raise NotFoundError(
                f"{source.name}:{path}", (f"{source.place}: a new repo to which nothing was pushed yet",)
            )
        refuse_twin(target, hub_document.name, existing_names)
        yield _copy(source, target, hub_document, progress)


def _copy(source: HuggingFace, target: Registry, hub_document: ReferenceDocument, progress: Progress | None) -> Copied:
    path = hub_document.name
    registry_document = target.current(path)[0] or ReferenceDocument(path)
    if registry_document.name != path:
        raise ConflictError(f"The name {path}", "a delta of that name", f"an old name of {registry_document.name}")
    merged(registry_document, hub_document, *target.stamp())  # a conflict must be found before anything is transferred
    versions: dict[str, Version] = {}
    objects: dict[str, Source] = {}
    with scratch() as folder:
        for name, entry in hub_document.versions.items():
            if name in registry_document.versions or name in registry_document.removed:
                existing_version = registry_document.versions.get(name)
                versions[name] = _with_summary(entry, existing_version.summary) if existing_version else entry
                continue
            resolved = source.version(path, entry.digest)
            if resolved.digest != entry.digest:
                raise IntegrityError(f"{path}@{name} in {source.place}", entry.digest, resolved.digest)
            for file in resolved.manifest.files:
                if file.sha256 not in objects:
                    objects[file.sha256] = folder / file.sha256
                    resolved.fetch(file, folder / file.sha256, progress)
            objects[entry.digest.hex] = resolved.manifest.to_bytes()
            versions[name] = _with_summary(entry, summary_of(resolved.manifest))
        summarised = replace(hub_document, versions=versions)
        size = sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in objects.values())
        changed = target.add(objects, path, lambda now: merged(now, summarised, *target.stamp()))
    new = tuple(
        name for name in versions if name not in registry_document.versions and name not in registry_document.removed
    )
    return Copied(path, new, changed != registry_document, size)


def _with_summary(entry: Version, summary: Mapping[str, object]) -> Version:
    """Return a version as its hub says it, which leaves out of the summary what its manifest says."""
    pushed = {key: value for key, value in summary.items() if key not in (DESCRIPTION, CARD_FACTS)}
    return replace(entry, summary={**pushed, **entry.summary})
