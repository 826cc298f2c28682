"""Which signatures are asked for: a registry's policy, kept where it cannot be passed by.

A delta of a registry with trusted keys is taken only with a good signature by one of them. What was checked is kept in the cache, so
that it can be checked again without the network; it is checked each time, so that a key that is no longer trusted no longer counts.

The policy belongs to the place, not to the word for it: a link to its folder, another spelling of its address and another source at the
same place are under it. It covers a name, too: where a name without a source or a lock file leads elsewhere, and a registry with trusted
keys has a delta of that name, one of these keys must have signed what is taken.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from deltahub.cache.names import CachedNames
from deltahub.configured import S3, is_place, place_of
from deltahub.errors import DeltaHubError, NotFoundError, SignatureError, UnreachableError
from deltahub.files import read_file, staging
from deltahub.link import SOURCE as LINKS
from deltahub.log import LOGGER
from deltahub.reference import Reference
from deltahub.rights import make_folder, take_after
from deltahub.signing import PublicKey, each_of, holds, stated, trusted_by
from deltahub.sources.base import Resolved, Source
from deltahub.sources.choosing import Choice
from deltahub.sources.registry import RegistrySource

SIGNATURES: Final = "signatures"  # in the cache, as in a registry
_SHOWN: Final = 3  # names that a message lists


class Policies:
    """Which keys are trusted for what is taken from where.

    Args:
        trust: keys in PEM, by the name or the address of a registry.
        choice: the sources.
        names: what references meant when they were last pulled.
    """

    def __init__(self, trust: Mapping[str, Sequence[str]], choice: Choice, names: CachedNames) -> None:
        self._trust = {name: keys for name, keys in trust.items() if keys}
        self._choice, self._names = choice, names

    def of_place(self, name: str | None) -> Sequence[str]:
        """The keys that are trusted for a source, or for another name of the same place; none if it asks for none."""
        if not self._trust or name is None or name == LINKS:
            return ()
        if name in self._trust:
            return self._trust[name]
        try:
            url = self._url(self._choice.source(name))
        except DeltaHubError:  # it is off, or gone from the settings: only the cache can have it
            return ()
        return next((keys for other, keys in self._trust.items() if url and self._is_at(other, url)), ())

    def of_name(self, found: Resolved, *, ask: bool) -> Iterator[tuple[str, Sequence[str]]]:
        """The other registries with trusted keys that have a delta of this name, and these keys.

        Args:
            ask: those that may have it are asked; else it counts only where the name came from before.

        Raises:
            UnreachableError: one that may have it gives no answer.
        """
        exact = found.reference
        if not isinstance(exact, Reference) or not self._trust or self.of_place(exact.source):
            return
        for source in self._choice.on():
            keys = self._trust.get(source.name)
            if keys and source.name in self._choice.names(exact.namespace) and self._has(source, exact, ask=ask):
                yield source.name, keys

    def _has(self, source: Source, exact: Reference, *, ask: bool) -> bool:
        before = self._names.origin(exact.path)
        if before and before.place == source.place:
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
        there = self._url(self._choice.sources[name]) if name in self._choice.sources else None
        return there is not None and same_place(there, url)

    @staticmethod
    def _url(source: Source) -> str | None:
        return source.registry.store.url if isinstance(source, RegistrySource) else None


def same_place(one: str, other: str) -> bool:
    """Whether two addresses are the same registry: the same bucket and prefix on any server, or the same folder by any path."""
    if S3 in (one[: len(S3)], other[: len(S3)]):
        return one.partition(" at ")[0].rstrip("/") == other.partition(" at ")[0].rstrip("/")
    try:
        return Path(one).samefile(other)
    except OSError:  # one of them is not there
        return os.path.realpath(one) == os.path.realpath(other)


def require_signature(
    found: Resolved, keys: Collection[str], ask: Callable[[str], Mapping[str, bytes]], cache: Path, because: str = ""
) -> str:
    """Refuse a delta that none of some keys signed.

    Args:
        keys: those that are trusted, in PEM.
        ask: gives the signatures of a digest at its source.
        cache: where checked signatures are kept.
        because: why these keys are asked for, as a clause, where it is not plain.

    Returns:
        The id of the key that signed it.

    Raises:
        SignatureError: none did.
        ConfigError: signing is not installed.
    """
    trusted = {key.id: key for key in (PublicKey.parse(pem.encode(), "The settings") for pem in keys)}
    manifest, version = found.manifest.to_bytes(), _version(found)
    folder = cache / SIGNATURES / found.digest.removeprefix("sha256:")
    if key_id := trusted_by(manifest, _kept(folder, trusted), trusted, version):
        return key_id
    why = ""
    signatures: Mapping[str, bytes] = {}
    try:
        signatures = ask(found.digest)
    except DeltaHubError as error:
        why = f"its signatures cannot be read: {error}"
    key_id = trusted_by(manifest, signatures, trusted, version)
    if key_id is None:  # releases before names were stated
        key_id = trusted_by(manifest, signatures, trusted) or trusted_by(manifest, _kept(folder, trusted), trusted)
        if key_id is None:
            why = f"{why or _why(manifest, signatures, trusted, version)}{because and f' ({because})'}"
            raise SignatureError(str(found.reference), why, tuple(sorted(trusted)))
        LOGGER.warning(
            "The signature of %s, by an earlier release, states no name and version, so it could be that of another delta. "
            "Sign it again: deltahub sign %s --key KEY",
            *(found.reference, found.reference),
        )
    if key_id in signatures:
        _keep(cache, folder, key_id, signatures[key_id])
    return key_id


def _version(found: Resolved) -> str:
    exact = found.reference
    return f"{exact.path}@{exact.version}" if isinstance(exact, Reference) else ""


def _why(manifest: bytes, signatures: Mapping[str, bytes], trusted: Mapping[str, PublicKey], version: str) -> str:
    if not signatures:
        return "it is not signed"
    for key_id in sorted(signatures.keys() & trusted.keys()):
        others = [
            name
            for line in each_of(signatures[key_id])
            if (name := stated(line)) and name != version and holds(manifest, line, trusted[key_id], name)
        ]
        if others:
            return f"its content is signed as {', '.join(others[:_SHOWN])} and under no other name or version"
        return f"its signature by the key {key_id[:16]} is not one over this delta"
    return f"it is signed by {', '.join(key_id[:16] for key_id in sorted(signatures))}, which is not trusted"


def _kept(folder: Path, trusted: Mapping[str, PublicKey]) -> dict[str, bytes]:
    found = {}
    for key_id in trusted:
        with contextlib.suppress(DeltaHubError, OSError):
            found[key_id] = read_file(folder / f"{key_id}.json")
    return found


def _keep(cache: Path, folder: Path, key_id: str, signature: bytes) -> None:
    """Keep a signature in the cache; one that may only be read does without."""
    with contextlib.suppress(OSError):
        make_folder(cache, folder)
        with staging(folder) as stage:
            (stage / "signature").write_bytes(signature)
            take_after(cache, [stage / "signature"])
            os.replace(stage / "signature", folder / f"{key_id}.json")
