"""Preparation of pushes: every check and signature before a source is asked to store anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.checkpoint.default_name import default_name, folder_name
from deltahub.errors import DeltaHubError, Outcome, ReferenceSyntaxError, outcome
from deltahub.reference import DeltaPath, Digest, Reference, check_alias, check_tag
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version
from deltahub.registry.publish import Publication
from deltahub.registry.registry import Registry
from deltahub.sources.base import Pushed, Source
from deltahub.sources.registry import RegistrySource, as_registry
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
    """Check a folder, every file in it, and its name and tags.

    Args:
        name: ``"[source:]namespace/name"``; by default made from its task and backbone.
        tags: labels and key=value pairs, beside those saved in the checkpoint.
        expect: alias to the version that it must point to now, None if it must not exist.
        to: the source to publish to.

    Returns:
        The publication. The source of its reference is its destination, None for the default one.

    Raises:
        CheckpointError: the folder does not hold a complete delta.
        IntegrityError: a file differs from the saved one.
        ReferenceSyntaxError: the name, a tag or an alias is not well formed.
    """
    checked = [check_tag(tag) for tag in tags]
    for alias in aliases:
        check_alias(alias)
    from deltahub.checkpoint.checkpoint import describe  # late: a list or a pull reads no checkpoint

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
) -> list[Outcome[Pushed]]:
    """Publish many checkpoint folders at a source: see `Hub.push_many`."""
    registry = as_registry(source) if sign else None  # refuse before reading every file
    checked: list[Outcome[Publication]] = []
    for folder in folders:
        name = None if namespace is None else folder_name(folder, namespace)
        checked.append(outcome(partial(ready, folder, name, tags=tags, message=message, to=source.name)))
    stated: list[str] = []
    if sign and registry:
        able = [it for it in checked if isinstance(it, Publication)]
        versions, failed = sign_all(registry, able, sign)
        stated = [version for version, it in zip(versions, able, strict=True) if it.manifest.digest not in failed]
        checked = [failed.get(it.manifest.digest, it) if isinstance(it, Publication) else it for it in checked]
    able = [it for it in checked if isinstance(it, Publication)]
    if isinstance(source, RegistrySource):
        results = source.publish_many(able, progress)
    else:
        results = [outcome(partial(source.publish, it, progress=progress)) for it in able]
    if sign and registry:
        sign_moved(registry, list(zip(able, stated, results, strict=True)), sign)
    done = iter(results)
    return [next(done) if isinstance(it, Publication) else it for it in checked]


def sign_all(
    registry: Registry, publications: Sequence[Publication], key: PrivateKey
) -> tuple[list[str], dict[Digest, DeltaHubError]]:
    """Sign publications before they are visible, each as the version that the registry would assign now.

    Returns:
        The version that each is signed as, ``"namespace/name@v3"``, and by digest the errors of failed signatures.
    """
    from deltahub.registry.signatures import add_signatures  # late: few sign

    documents: dict[DeltaPath, ReferenceDocument] = {}
    stated: list[str] = []
    made: dict[Digest, bytes] = {}
    for it in publications:
        path, digest = it.reference.path, it.manifest.digest
        if path not in documents:
            documents[path] = registry.read(path)[0] or ReferenceDocument(path)
        documents[path], version = documents[path].with_version(Version(digest, "", "", "", (), {}))
        stated.append(f"{documents[path].name}@{version}")
        signature = key.sign(it.manifest.to_bytes(), stated[-1])
        made[digest] = b"\n".join(filter(None, (made.get(digest), signature)))
    return stated, add_signatures(registry, key.public.id, made)


def sign_moved(registry: Registry, done: Sequence[tuple[Publication, str, Outcome[Pushed]]], key: PrivateKey) -> None:
    """Sign publications that became another version than signed, because of concurrent pushes; until then they are refused."""
    from deltahub.registry.signatures import add_signature  # late: few sign

    for it, stated, pushed in done:
        if isinstance(pushed, Pushed) and isinstance(pushed.reference, Reference):
            version = f"{pushed.reference.path}@{pushed.reference.version}"
            if version != stated:
                add_signature(registry, pushed.digest, key.public.id, key.sign(it.manifest.to_bytes(), version))
