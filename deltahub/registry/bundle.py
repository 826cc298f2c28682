"""Bundles: deltas in one file, for machines without a network.

An import checks the whole file before it stores anything: its layout, every digest, every name, and that each version is
compatible with the registry's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import ConfigError, DeltaHubError, IntegrityError
from deltahub.files.atomic import scratch, staging, storage_errors, sync_file, sync_folders
from deltahub.files.documents import canonical_json
from deltahub.reference import Digest, Reference, check_alias, check_tag
from deltahub.registry.archive import Member, Signed, unpack, write
from deltahub.registry.case_collisions import refuse_twin
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.reconcile import Vouched, merged, part
from deltahub.registry.registry import Change, Registry
from deltahub.registry.signatures import merge_signatures, signatures
from deltahub.stores.base import Source, object_key


@dataclass(frozen=True)
class Bundled:
    """One delta in an exported or imported bundle.

    Attributes:
        name: ``"namespace/name"``.
        versions: its versions in order.
        new: the versions that the registry did not have; empty after an export.
    """

    name: str
    versions: tuple[str, ...]
    new: tuple[str, ...] = ()


def export_bundle(
    requests: Iterable[tuple[Registry, Reference]],
    path: Path,
    *,
    history: bool = False,
    vouched: Callable[[Registry], Vouched | None] = lambda _: None,
) -> list[Bundled]:
    """Write deltas into one file; the same deltas give the same bytes.

    Args:
        requests: each delta and its registry; a version is exported with its tags and the aliases that point to it.
        path: the file, which is replaced as a whole.
        history: export all versions, aliases and moves of each delta.
        vouched: returns for a registry a check that raises for a version without a required signature; None for no check.

    Raises:
        SignatureError: a version is refused. Nothing was written.
        NotFoundError: a registry has no such delta or version, or all its versions were removed.
        IntegrityError: a registry is damaged. Nothing was written.
        ConfigError: two registries have different deltas under one name.
    """
    documents: dict[str, tuple[Registry, ReferenceDocument]] = {}
    for registry, reference in requests:
        document = registry.document(reference.path)
        version = document.resolve(reference.version)
        taken = document if history else part(document, version)
        earlier = documents.get(document.name)
        if earlier and earlier[0] is not registry:
            msg = f"{document.name} is asked for from {earlier[0].name} and from {registry.name}. Export two bundles."
            raise ConfigError(msg)
        documents[document.name] = registry, merged(earlier[1], taken, "", "") if earlier and not history else taken
    parts = {name: replace(document, log=document.log if history else ()) for name, (_, document) in documents.items()}
    places: dict[str, tuple[Registry, Member]] = {}
    signed: set[Signed] = set()
    for name, document in parts.items():
        registry = documents[name][0]
        if refuse := vouched(registry):
            for version in document.versions:
                refuse(document, version)
        for digest in {entry.digest for entry in document.versions.values()}:
            manifest = registry.manifest(digest)
            digits, size = digest.hex, len(registry.store.read(object_key(digest.hex)))
            members = [Member(digits, size), *(Member(entry.sha256, entry.size) for entry in manifest.files)]
            places.update({member.sha256: (registry, member) for member in members})
            key_signatures = signatures(registry, digest).items()
            signed.update(Signed(digest, key_id, data.decode("utf-8", "replace")) for key_id, data in key_signatures)
    deltas = [json.loads(parts[name].to_bytes()) for name in sorted(parts)]
    _save(path, deltas, places, signed)
    return [Bundled(name, tuple(parts[name].versions)) for name in sorted(parts)]


def _save(path: Path, deltas: list[Any], places: dict[str, tuple[Registry, Member]], signed: Iterable[Signed]) -> None:
    folder = path.absolute().parent
    with storage_errors("Writing the bundle", folder), staging(folder) as stage:

        def fetch(member: Member) -> Path:
            registry, _ = places[member.sha256]
            sha256 = registry.store.fetch(object_key(member.sha256), stage / "object")
            if sha256 != member.sha256 or (stage / "object").stat().st_size != member.size:
                subject = f"An object in the registry {registry.place}"
                remedy = "Repair it with `deltahub verify --repair`, or push the delta again."
                raise IntegrityError(subject, Digest.of_hex(member.sha256), Digest.of_hex(sha256), remedy)
            return stage / "object"

        with (stage / "bundle").open("xb") as file:
            write(file, deltas, (member for _, member in places.values()), fetch, signed)
        sync_file(stage / "bundle")
        os.replace(stage / "bundle", path)
        sync_folders([folder])


def import_bundle(path: Path, registry: Registry) -> list[Bundled]:
    """Store the deltas of a bundle in a registry: files, versions under their numbers, aliases and tags.

    Raises:
        IntegrityError: the file is not a complete bundle. Nothing was stored.
        ReferenceSyntaxError: a name, tag or alias in it is not well formed. Nothing was stored.
        ConflictError: the registry has other content under the same version. Nothing was stored.
        StorageError: the file cannot be read, or the registry is full or not writable.
    """
    with scratch() as folder:
        with storage_errors("Reading the bundle", path, "read"):
            deltas, members, signed = unpack(path, folder)
        checked = [_checked(path, delta, members, folder) for delta in deltas]
        held = {sha256 for _, objects in checked for sha256 in objects}
        if stray := sorted(members.keys() - held):
            raise _wrong(path, "objects of its deltas only", f"{Digest.of_hex(stray[0])}, which belongs to none")
        versions = {entry.digest for document, _ in checked for entry in document.versions.values()}
        if others := sorted(signature.digest for signature in signed if signature.digest not in versions):
            raise _wrong(path, "signatures of its deltas only", f"one of {others[0]}")
        before: dict[str, tuple[str, ...]] = {}
        for document, _ in checked:
            refuse_twin(registry, document.name)
            mine = registry.read(document.name)[0] or ReferenceDocument(document.name)
            merged(mine, document, *registry.stamp())
            before[document.name] = tuple(mine.versions)
        for document, objects in checked:
            registry.add(objects, document.name, _with(document, registry))
        for digest in versions:
            merge_signatures(
                registry,
                digest,
                {signature.key: signature.signature.encode() for signature in signed if signature.digest == digest},
            )
        return [
            Bundled(
                document.name,
                tuple(document.versions),
                tuple(name for name in document.versions if name not in before[document.name]),
            )
            for document, _ in checked
        ]


def _with(imported: ReferenceDocument, registry: Registry) -> Change:
    return lambda mine: merged(mine, imported, *registry.stamp())


def _checked(
    path: Path, delta: Any, members: dict[str, Member], folder: Path
) -> tuple[ReferenceDocument, dict[str, Source]]:
    """Check a delta's document completely and return it with its objects."""
    document = ReferenceDocument.from_bytes(canonical_json(delta))
    if not document.versions:
        raise _wrong(path, "deltas with versions", repr(document.name))
    if document.moving:
        raise _wrong(path, f"{document.name} under one name", f"that it is about to be {document.moving.to}")
    for alias in document.aliases:
        check_alias(alias)
    objects: dict[str, Source] = {}
    for entry in document.versions.values():
        for tag in entry.tags:
            check_tag(tag)
        digits = entry.digest.hex
        if digits not in members:
            raise _wrong(path, f"the manifest {entry.digest}", "nothing")
        try:
            manifest = Manifest.from_bytes((folder / digits).read_bytes(), entry.digest)
        except DeltaHubError as error:
            raise _wrong(path, f"the manifest {entry.digest}", str(error)) from error
        for file in manifest.files:
            if members.get(file.sha256) != Member(file.sha256, file.size):
                raise _wrong(path, f"{file.path} of {file.size} bytes, sha256:{file.sha256}", "nothing of that size")
        objects |= {sha256: folder / sha256 for sha256 in (digits, *(file.sha256 for file in manifest.files))}
    return document, objects


def _wrong(path: Path, expected: str, found: str) -> IntegrityError:
    remedy = "Nothing was stored. Export it again where it came from."
    return IntegrityError(f"The bundle {path}", expected, found, remedy)
