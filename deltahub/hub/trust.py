"""Enforcement of signatures: a delta must be signed by a key that the user trusts for its registry.

A delta from a registry with trusted keys needs a valid signature by any of the keys. Verified signatures are kept in the cache, so
that they can be verified again without the network; this happens each time, so that a key that loses trust no longer counts.

The policy applies to the location, not to its name: it covers a link to the registry's folder, another spelling of its address and
another source at the same location. It covers delta names, too: where a name without a source or a lock file leads elsewhere, and
a registry with trusted keys has a delta of that name, one of these keys must have signed the delta.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from deltahub.cache.remembered import CachedNames
from deltahub.errors import DeltaHubError, NotFoundError, SignatureError, UnreachableError
from deltahub.files.atomic import read_file, staging
from deltahub.files.permissions import inherit_permissions, make_folder
from deltahub.link import Link
from deltahub.log import LOGGER
from deltahub.reference import Digest, Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.reconcile import Vouched
from deltahub.registry.registry import Registry
from deltahub.registry.signatures import signatures
from deltahub.settings.source_entry import is_place, place_of
from deltahub.signing import PublicKey, is_valid_signature, split_signatures, stated_version, trusted_signer
from deltahub.sources.base import Resolved, Source
from deltahub.sources.catalog import Choice
from deltahub.sources.registry import RegistrySource

SIGNATURES: Final = "signatures"  # folder in the cache, as in a registry
_SHOWN: Final = 3  # names in a message


class Policies:
    """The trusted keys of each registry.

    Args:
        trust: keys in PEM, by the name or the address of a registry.
        choice: the sources.
        names: the meanings of references at their last pull.
        cache: the folder of the cache, which keeps verified signatures.
    """

    def __init__(self, trust: Mapping[str, Sequence[str]], choice: Choice, names: CachedNames, cache: Path) -> None:
        self._trust = {name: keys for name, keys in trust.items() if keys}
        self._choice, self._names, self._cache = choice, names, cache

    def check(self, resolved: Resolved, trust: Sequence[str] = (), *, chosen: bool = False, ask: bool = True) -> None:
        """Refuse a delta if keys are trusted and it has no valid signature by any trusted key.

        Args:
            trust: keys in PEM, one of which must have signed it, whatever its registry requires.
            chosen: whether the user named its source; if not, registries with trusted keys and a delta of its name count too.
            ask: whether to ask those registries for the name.

        Raises:
            SignatureError: no trusted key signed it.
        """
        requirements = [("", trust), ("", self.of_place(resolved.reference.source))]
        for name, keys in () if chosen else self._of_name(resolved, ask=ask):
            requirements.append((f"{name} has a delta of this name, and requires signatures", keys))
        for reason, keys in requirements:
            if keys:
                require_signature(resolved, keys, partial(self._signatures, resolved.reference), self._cache, reason)

    def vouched(self, registry: Registry) -> Vouched | None:
        """Return a function that refuses versions without the signature that a registry requires; None if it requires none.

        Every copy or export from the registry passes through it, as the copy could then be pulled elsewhere unsigned.
        """
        if not self.of_place(registry.name):
            return None

        def refuse(document: ReferenceDocument, version: str) -> None:
            digest = document.versions[version].digest
            exact = Reference(document.name, source=registry.name, version=version)
            self.check(Resolved(exact, digest, registry.manifest(digest), registry.fetch), chosen=True)

        return refuse

    def of_place(self, name: str | None) -> Sequence[str]:
        """Return the trusted keys of a source, or of another one at the same location; empty if it requires no signature."""
        if not self._trust or name is None:
            return ()
        if name in self._trust:
            return self._trust[name]
        try:
            url = self._url(self._choice.source(name))
        except DeltaHubError:  # disabled, or removed from the settings: only the cache can have it
            return ()
        return next((keys for other, keys in self._trust.items() if url and self._is_at(other, url)), ())

    def _of_name(self, resolved: Resolved, *, ask: bool) -> Iterator[tuple[str, Sequence[str]]]:
        """Iterate over the other registries with trusted keys and a delta of this name, each with its keys.

        Args:
            ask: whether to ask the registries; otherwise one counts only if the name came from it before.

        Raises:
            UnreachableError: a registry that may have it does not answer.
        """
        exact = resolved.reference
        if not isinstance(exact, Reference) or not self._trust or self.of_place(exact.source):
            return
        for source in self._choice.on():
            keys = self._trust.get(source.name)
            if keys and source.name in self._choice.names(exact.path.namespace) and self._has(source, exact, ask=ask):
                yield source.name, keys

    def _has(self, source: Source, exact: Reference, *, ask: bool) -> bool:
        origin = self._names.origin(exact.path)
        if origin and origin.place == source.place:
            return True
        if not ask or self._choice.forbidden(source):
            return False
        try:
            source.document(exact.path)
        except NotFoundError:
            return False
        except UnreachableError as error:
            msg = (
                f"{error} It asks for signatures and may have {exact.path}, so nothing else takes its place. "
                f"Name the source that you mean: {exact}"
            )
            raise UnreachableError(msg) from error
        return True

    def _is_at(self, name: str, url: str) -> bool:
        if is_place(name):
            return same_place(place_of(name), url)
        source_url = self._url(self._choice.sources[name]) if name in self._choice.sources else None
        return source_url is not None and same_place(source_url, url)

    def _signatures(self, reference: Reference | Link, digest: Digest) -> Mapping[str, bytes]:
        source = self._choice.require_reachable(self._choice.source_of(reference))
        return signatures(source.registry, digest) if isinstance(source, RegistrySource) else {}

    @staticmethod
    def _url(source: Source) -> str | None:
        return source.registry.store.url if isinstance(source, RegistrySource) else None


def same_place(address: str, other_address: str) -> bool:
    """Check whether two addresses mean the same registry: one bucket and prefix on any server, or one folder by any path."""
    if "://" in address or "://" in other_address:
        return address.partition(" at ")[0].rstrip("/") == other_address.partition(" at ")[0].rstrip("/")
    try:
        return Path(address).samefile(other_address)
    except OSError:  # a path does not exist
        return os.path.realpath(address) == os.path.realpath(other_address)


def require_signature(
    resolved: Resolved,
    keys: Collection[str],
    ask: Callable[[Digest], Mapping[str, bytes]],
    cache: Path,
    reason: str = "",
) -> str:
    """Refuse a delta without a valid signature by a trusted key.

    Args:
        keys: the trusted keys, in PEM.
        ask: returns the signatures of a digest at its source.
        cache: the cache for verified signatures.
        reason: why these keys are required, as a clause, where it is not obvious.

    Returns:
        The id of the key that signed it.

    Raises:
        SignatureError: no trusted key signed it.
        ConfigError: signing is not installed.
    """
    trusted = {key.id: key for key in (PublicKey.parse(pem.encode(), "The settings") for pem in keys)}
    manifest, version = resolved.manifest.to_bytes(), _version(resolved)
    folder = cache / SIGNATURES / resolved.digest.hex
    if key_id := trusted_signer(manifest, _kept(folder, trusted), trusted, version):
        return key_id
    problem = ""
    claims: Mapping[str, bytes] = {}
    try:
        claims = ask(resolved.digest)
    except DeltaHubError as error:
        problem = f"its signatures cannot be read: {error}"
    key_id = trusted_signer(manifest, claims, trusted, version)
    if key_id is None:  # signatures of releases that stated no names
        key_id = trusted_signer(manifest, claims, trusted) or trusted_signer(manifest, _kept(folder, trusted), trusted)
        if key_id is None:
            problem = f"{problem or _why(manifest, claims, trusted, version)}{reason and f' ({reason})'}"
            raise SignatureError(str(resolved.reference), problem, tuple(sorted(trusted)))
        LOGGER.warning(
            "The signature of %s, by an earlier release, states no name and version, so it could be that of another delta. "
            "Sign it again: deltahub sign %s --key KEY",
            *(resolved.reference, resolved.reference),
        )
    if key_id in claims:
        _keep(cache, folder, key_id, claims[key_id])
    return key_id


def _version(resolved: Resolved) -> str:
    exact = resolved.reference
    return f"{exact.path}@{exact.version}" if isinstance(exact, Reference) else ""


def _why(manifest: bytes, claims: Mapping[str, bytes], trusted: Mapping[str, PublicKey], version: str) -> str:
    if not claims:
        return "it is not signed"
    for key_id in sorted(claims.keys() & trusted.keys()):
        others = [
            name
            for line in split_signatures(claims[key_id])
            if (name := stated_version(line))
            and name != version
            and is_valid_signature(manifest, line, trusted[key_id], name)
        ]
        if others:
            return f"its content is signed as {', '.join(others[:_SHOWN])} and under no other name or version"
        return f"its signature by the key {key_id[:16]} does not match this delta"
    return f"it is signed by {', '.join(key_id[:16] for key_id in sorted(claims))}, which is not trusted"


def _kept(folder: Path, trusted: Mapping[str, PublicKey]) -> dict[str, bytes]:
    signatures_by_key = {}
    for key_id in trusted:
        with contextlib.suppress(DeltaHubError, OSError):
            signatures_by_key[key_id] = read_file(folder / f"{key_id}.json")
    return signatures_by_key


def _keep(cache: Path, folder: Path, key_id: str, signature: bytes) -> None:
    """Keep a signature in the cache, unless the cache is read-only."""
    with contextlib.suppress(OSError):
        make_folder(cache, folder)
        with staging(folder) as stage:
            (stage / "signature").write_bytes(signature)
            inherit_permissions(cache, [stage / "signature"])
            os.replace(stage / "signature", folder / f"{key_id}.json")
