"""What is pushed, with all that can be checked before a source is asked to store anything."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.errors import DeltaHubError, ReferenceSyntaxError
from deltahub.hub.lookup import as_registry
from deltahub.manifest import Manifest
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


@dataclass(frozen=True)
class Ready:
    """A checkpoint folder that may be pushed.

    Attributes:
        folder: where its files lie.
        manifest: of its files, each checked.
        reference: its name, without a version; its source is where it goes, None for the default one.
        tags: those saved in it, and those given.
        aliases: movable names to point to it.
    """

    folder: Path
    manifest: Manifest
    reference: Reference
    tags: tuple[str, ...]
    aliases: tuple[str, ...]


def ready(
    folder: Path,
    name: str | None = None,
    *,
    tags: Collection[str] = (),
    aliases: Collection[str] = (),
    to: str | None = None,
) -> Ready:
    """Check a folder, every file of it, and what it shall be called.

    Args:
        name: ``"[source:]namespace/name"``; by default made from its task and backbone.
        tags: labels and key=value pairs, beside those saved in the checkpoint.
        to: the source to publish to.

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
    return Ready(folder, manifest, named, (*saved, *checked), tuple(aliases))


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
    checked: list[Ready | DeltaHubError] = []
    for folder in folders:
        name = None if namespace is None else folder_name(folder, namespace)
        try:
            checked.append(ready(folder, name, tags=tags, to=source.name))
        except DeltaHubError as error:
            checked.append(error)
    if sign and registry:
        checked = _signed(registry, checked, sign)
    able = [it for it in checked if isinstance(it, Ready)]
    if isinstance(source, RegistrySource):
        asked = [Publication(it.reference, it.manifest, it.folder, it.tags, message=message) for it in able]
        done = iter(source.publish_many(asked, progress))
    else:
        done = iter([_push(source, it, message, progress) for it in able])
    return [next(done) if isinstance(it, Ready) else it for it in checked]


def _signed(
    registry: Registry, checked: Sequence[Ready | DeltaHubError], key: PrivateKey
) -> list[Ready | DeltaHubError]:
    """Sign all that may be pushed, before any of it can be seen; what could not be signed may not be pushed any more."""
    from deltahub.registry.signatures import add_signatures  # late: few sign

    manifests = {it.manifest.digest: it.manifest.to_bytes() for it in checked if isinstance(it, Ready)}
    made = {digest: key.sign(manifest) for digest, manifest in manifests.items()}
    failed = add_signatures(registry, key.public.id, made)
    return [failed.get(it.manifest.digest, it) if isinstance(it, Ready) else it for it in checked]


def _push(source: Source, it: Ready, message: str, progress: Progress | None) -> Pushed | DeltaHubError:
    try:
        return source.publish(it.folder, it.manifest, it.reference, tags=it.tags, message=message, progress=progress)
    except DeltaHubError as error:
        return error
