"""Pushes to a source, and their signatures, which are stored before anything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from deltahub.checkpoint.default_name import folder_name
from deltahub.errors import DeltaHubError, Outcome, ReferenceSyntaxError, outcome
from deltahub.reference import DeltaPath, Digest, Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version
from deltahub.registry.publish import Publication
from deltahub.registry.registry import Registry
from deltahub.sources.base import Pushed, Source
from deltahub.sources.registry import RegistrySource, as_registry
from deltahub.stores.base import Progress


def push(source: Source, publication: Publication, progress: Progress | None = None) -> Pushed:
    """Publish a checkpoint at a source: see `Hub.publish`."""
    if not publication.signer:
        return source.publish(publication, progress)
    registry = as_registry(source)
    versions, failed = _sign(registry, [publication])
    for error in failed.values():
        raise error
    pushed = source.publish(publication, progress)
    _sign_moved(registry, [(publication, versions[0], pushed)])
    return pushed


def publications(
    folders: Sequence[Path], namespace: str | None, make: Callable[[Path, str | None], Publication]
) -> list[Outcome[Publication]]:
    """Check many checkpoint folders.

    Args:
        namespace: name each after its folder, in this namespace; None for the default names.
        make: checks one folder with its name.

    Returns:
        For each its publication, or the error that keeps it from being published.

    Raises:
        ReferenceSyntaxError: the namespace is not well formed.
    """
    if namespace is None:
        return [outcome(partial(make, folder, None)) for folder in folders]
    Reference.parse(f"{namespace}/delta")  # once for all
    names = [folder_name(folder, namespace) for folder in folders]
    same_name: dict[str, set[Path]] = defaultdict(set)
    for folder, name in zip(folders, names, strict=True):
        same_name[name].add(folder.resolve())
    return [
        _shared(name, same_name[name]) if len(same_name[name]) > 1 else outcome(partial(make, folder, name))
        for folder, name in zip(folders, names, strict=True)
    ]


def _shared(name: str, folders: set[Path]) -> ReferenceSyntaxError:
    """Return the error of folders that would become versions of one delta by accident."""
    first, second = sorted(folders)[:2]
    msg = f"{first} and {second} would both be named {name}. Rename one of them, or push each with a name of its own."
    return ReferenceSyntaxError(msg)


def push_many(
    source: Source, requests: Sequence[Outcome[Publication]], progress: Progress | None = None
) -> list[Outcome[Pushed]]:
    """Publish many checkpoints at a source: see `Hub.push_many`.

    Args:
        requests: the publications; an error stands for one that could not be prepared, and is its result.
    """
    publications = [request for request in requests if isinstance(request, Publication)]
    registry = as_registry(source) if any(publication.signer for publication in publications) else None
    versions: list[str] = []
    if registry:
        stated, failed = _sign(registry, publications)
        pairs = zip(stated, publications, strict=True)
        versions = [version for version, publication in pairs if publication.manifest.digest not in failed]
        requests = [
            failed.get(request.manifest.digest, request) if isinstance(request, Publication) else request
            for request in requests
        ]
        publications = [request for request in requests if isinstance(request, Publication)]
    if isinstance(source, RegistrySource):
        results = source.publish_many(publications, progress)
    else:
        results = [outcome(partial(source.publish, publication, progress)) for publication in publications]
    if registry:
        _sign_moved(registry, list(zip(publications, versions, results, strict=True)))
    remaining = iter(results)
    return [next(remaining) if isinstance(request, Publication) else request for request in requests]


def _sign(registry: Registry, publications: Sequence[Publication]) -> tuple[list[str], dict[Digest, DeltaHubError]]:
    """Sign publications before they are visible, each as the version that the registry would assign now.

    Returns:
        The version that each is signed as, ``"namespace/name@v3"``, and by digest the errors of failed signatures.
    """
    from deltahub.registry.signatures import add_signatures  # late: few sign

    documents: dict[DeltaPath, ReferenceDocument] = {}
    versions: list[str] = []
    signatures: dict[str, dict[Digest, bytes]] = defaultdict(dict)  # by key and digest
    for publication in publications:
        path, digest = publication.reference.path, publication.manifest.digest
        if path not in documents:
            documents[path] = registry.read(path)[0] or ReferenceDocument(path)
        documents[path], version = documents[path].with_version(Version(digest, "", "", "", (), {}))
        versions.append(f"{documents[path].name}@{version}")
        if key := publication.signer:
            signed = signatures[key.public.id]
            signature = key.sign(publication.manifest.to_bytes(), versions[-1])
            signed[digest] = b"\n".join(filter(None, (signed.get(digest), signature)))
    failed: dict[Digest, DeltaHubError] = {}
    for key_id, signed in signatures.items():
        failed |= add_signatures(registry, key_id, signed)
    return versions, failed


def _sign_moved(registry: Registry, results: Sequence[tuple[Publication, str, Outcome[Pushed]]]) -> None:
    """Sign publications that became another version than signed, because of concurrent pushes; until then they are refused."""
    from deltahub.registry.signatures import add_signature  # late: few sign

    for publication, signed_version, pushed in results:
        if isinstance(pushed, Pushed) and (key := publication.signer):
            version = f"{pushed.reference.path}@{pushed.reference.version}"
            if version != signed_version:
                signature = key.sign(publication.manifest.to_bytes(), version)
                add_signature(registry, pushed.digest, key.public.id, signature)
