"""Which signatures are asked for: a registry's policy, kept where it cannot be passed by.

A delta of a registry with trusted keys is taken only with a good signature by one of them. What was checked is kept in the cache, so
that it can be checked again without the network; it is checked each time, so that a key that is no longer trusted no longer counts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from deltahub.errors import DeltaHubError, SignatureError
from deltahub.files import read_file, staging
from deltahub.rights import make_folder, take_after
from deltahub.signing import PublicKey, trusted_by
from deltahub.sources.base import Resolved

SIGNATURES: Final = "signatures"  # in the cache, as in a registry


def require_signature(
    found: Resolved, keys: Collection[str], ask: Callable[[str], Mapping[str, bytes]], cache: Path
) -> str:
    """Refuse a delta that none of some keys signed.

    Args:
        keys: those that are trusted, in PEM.
        ask: gives the signatures of a digest at its source.
        cache: where checked signatures are kept.

    Returns:
        The id of the key that signed it.

    Raises:
        SignatureError: none did.
        ConfigError: signing is not installed.
    """
    trusted = {key.id: key for key in (PublicKey.parse(pem.encode(), "The settings") for pem in keys)}
    manifest = found.manifest.to_bytes()
    folder = cache / SIGNATURES / found.digest.removeprefix("sha256:")
    if key_id := trusted_by(manifest, _kept(folder, trusted), trusted):
        return key_id
    why = ""
    signatures: Mapping[str, bytes] = {}
    try:
        signatures = ask(found.digest)
    except DeltaHubError as error:
        why = f"its signatures cannot be read: {error}"
    key_id = trusted_by(manifest, signatures, trusted)
    if key_id is None:
        raise SignatureError(str(found.reference), why or _why(signatures, trusted), tuple(sorted(trusted)))
    _keep(cache, folder, key_id, signatures[key_id])
    return key_id


def _why(signatures: Mapping[str, bytes], trusted: Mapping[str, PublicKey]) -> str:
    if not signatures:
        return "it is not signed"
    if broken := sorted(signatures.keys() & trusted.keys()):
        return f"its signature by the key {broken[0][:16]} is not one over this delta"
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
