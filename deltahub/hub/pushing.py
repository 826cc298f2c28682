"""What is pushed, with all that can be checked before a source is asked to store anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.errors import DeltaHubError, ReferenceSyntaxError
from deltahub.hub.lookup import as_registry
from deltahub.naming import default_name, folder_name
from deltahub.outcomes import Pushed
from deltahub.reference import Reference, check_alias, check_tag
from deltahub.registry.publishing import Publication
from deltahub.registry.registry import Registry
from deltahub.sources.base import Source
from deltahub.sources.registry import RegistrySource
from deltahub.stores.base import Progress

if TYPE_CHECKING:
    from deltahub.signing import PrivateKey


def ready(
    folder: Path,
    name: str | None = None,
    *,
    tags: Collection[str] = (),
    aliases: Collection[str] = (),
    message: str = "",
    expect: Mapping[str, str | None] | None = None,
    to: str | None = None,
) -> Publication:
    """Check a folder, every file of it, and what it shall be called.

    Args:
        name: ``"[source:]namespace/name"``; by default made from its task and backbone.
        tags: labels and key=value pairs, beside those saved in the checkpoint.
        expect: what aliases must point to now, None for nothing.
        to: the source to publish to.

    Returns:
        What may be published. The source of its reference is where it goes, None for the default one.

    Raises:
        CheckpointError: the folder holds no whole delta.
        IntegrityError: a file is not the one that was saved.
        ReferenceSyntaxError: the name, a tag or an alias is not well formed.
    """
    checked = [check_tag(tag) for tag in tags]
    for alias in aliases:
        check_alias(alias)
    from deltahub.checkpoint import describe  # late: a list or a pull reads no checkpoint

    manifest = describe(folder)
    saved = [check_tag(tag) for tag in manifest.config.get("metadata", {}).get("tags", [])]
    reference = Reference.parse(name or default_name(manifest.config, checked))
    if reference.version:
        msg = f"A push numbers its version itself. Leave out '@{reference.version}', or give it as an alias."
        raise ReferenceSyntaxError(msg)
    if to and reference.source and to != reference.source:
        msg = f"{str(reference)!r} names another source than {to!r}. Name one of them."
        raise ReferenceSyntaxError(msg)
    named = replace(reference, source=to or reference.source)
    return Publication(named, manifest, folder, (*saved, *checked), tuple(aliases), message, expect)


def push_many(
    source: Source,
    folders: Sequence[Path],
    namespace: str | None,
    tags: Collection[str],
    message: str = "",
    progress: Progress | None = None,
    sign: PrivateKey | None = None,
) -> list[Pushed | DeltaHubError]:
    """Publish many checkpoint folders at a source: see `Hub.push_many`."""
    registry = as_registry(source) if sign else None  # before every file of every folder is read
    checked: list[Publication | DeltaHubError] = []
    for folder in folders:
        name = None if namespace is None else folder_name(folder, namespace)
        try:
            checked.append(ready(folder, name, tags=tags, message=message, to=source.name))
        except DeltaHubError as error:
            checked.append(error)
    if sign and registry:
        checked = _signed(registry, checked, sign)
    able = [it for it in checked if isinstance(it, Publication)]
    if isinstance(source, RegistrySource):
        done = iter(source.publish_many(able, progress))
    else:
        done = iter([_push(source, it, progress) for it in able])
    return [next(done) if isinstance(it, Publication) else it for it in checked]


def _signed(
    registry: Registry, checked: Sequence[Publication | DeltaHubError], key: PrivateKey
) -> list[Publication | DeltaHubError]:
    """Sign all that may be pushed, before any of it can be seen; what could not be signed may not be pushed any more."""
    from deltahub.registry.signatures import add_signatures  # late: few sign

    manifests = {it.manifest.digest: it.manifest.to_bytes() for it in checked if isinstance(it, Publication)}
    made = {digest: key.sign(manifest) for digest, manifest in manifests.items()}
    failed = add_signatures(registry, key.public.id, made)
    return [failed.get(it.manifest.digest, it) if isinstance(it, Publication) else it for it in checked]


def _push(source: Source, it: Publication, progress: Progress | None) -> Pushed | DeltaHubError:
    try:
        return source.publish(it, progress=progress)
    except DeltaHubError as error:
        return error
