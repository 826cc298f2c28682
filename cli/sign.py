"""Command `sign`, and the signature options and reports of push, pull and verify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import JsonOpt, QuietOpt, RefArg
from .output import Output

if TYPE_CHECKING:
    from deltahub.signing import PrivateKey

KeyArg = Annotated[
    Path,
    typer.Option(
        "--key", metavar="KEY", help="The private key, in PEM; DELTAHUB_SIGN_PASSWORD opens an encrypted one."
    ),
]
SignOpt = Annotated[
    Path | None, typer.Option("--sign", metavar="KEY", help="Sign it with the private key in this PEM file.")
]
RequireOpt = Annotated[
    bool,
    typer.Option(
        "--require-signature", help="Refuse deltas without a signature by a trusted key; --trust names the keys."
    ),
]
TrustOpt = Annotated[
    list[Path] | None,
    typer.Option("--trust", metavar="KEY.pub", help="A public key in PEM that is trusted; may be repeated."),
]


def sign(ref: RefArg, key: KeyArg, json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """Sign a delta's manifest, which lists every file by its digest, to vouch for the delta.

    [dim]deltahub sign acme/sst2-bert@v3 --key release.pem[/dim]
    """
    from deltahub.hub.hub import Hub
    from deltahub.reference import Reference
    from deltahub.registry.signatures import add_signature
    from deltahub.signing import PrivateKey

    hub, private = Hub.open(), PrivateKey(key)
    resolved = hub.resolve(Reference.parse(ref), fresh=True)
    key_id, registry = private.public.id, hub.registry(resolved.reference.source)
    version = f"{resolved.reference.path}@{resolved.reference.version}"
    add_signature(registry, resolved.digest, key_id, private.sign(resolved.manifest.to_bytes(), version))
    data = {"reference": str(resolved.reference), "digest": resolved.digest, "key": key_id}
    Output(as_json=json, quiet=quiet).result(
        data, str(resolved.reference), f"Signed by the key {key_id[:16]}, {resolved.digest.short}"
    )


def trusted(require: bool, keys: Sequence[Path] | None, sources: Sequence[str | None] = ()) -> tuple[str, ...]:
    """Read the public keys given to the options of pull, in PEM.

    Args:
        sources: the sources of the deltas, where given.

    Raises:
        BadParameter: signatures are required, but no trusted keys are known.
    """
    from deltahub.signing import PublicKey

    pems = tuple(PublicKey.read(key).pem for key in keys or ())
    if require and not pems:
        from deltahub.settings.user import Settings

        entries = Settings.read().added
        if not sources or any(name is None or name not in entries or not entries[name].trust for name in sources):
            raise typer.BadParameter(
                "--require-signature needs to know whose: name the keys with --trust KEY.pub, or set them for the registry: "
                "deltahub registry add NAME URL --require-signature --trust KEY.pub"
            )
    return pems


def still_to_sign(source: str | None, ref: str, key: PrivateKey | None) -> str | None:
    """Return a hint after a push to a source that requires a signature by another key; None if no hint is needed.

    Args:
        ref: the pushed delta.
        key: the key it was signed with.
    """
    from deltahub.settings.user import Settings

    entry = Settings.read().added.get(source or "")
    if entry is None or not entry.trust or (key and key.public.pem in entry.trust):
        return None
    return f"{entry.name} gives out only what a trusted key signed. If none did yet: deltahub sign {ref} --key KEY"


def signatures_of(checked: Sequence[tuple[str | None, str]]) -> dict[tuple[str | None, str], list[dict[str, str]]]:
    """Check the signatures of versions in registries.

    Args:
        checked: the source of each version, and its name there, ``"namespace/name@v1"``.

    Returns:
        For signed versions, by the same pair, the ``key`` of each signature and its ``state``: ``"good"``, ``"bad"``,
        ``"signed under another name"`` if it is valid only for another name or version, or ``"unknown key"`` if the key is not
        trusted.
    """
    from deltahub.errors import DeltaHubError
    from deltahub.hub.hub import Hub
    from deltahub.registry.signatures import PREFIX, signatures
    from deltahub.settings.user import Settings
    from deltahub.sources.registry import RegistrySource

    hub, entries = Hub.open(), Settings.read().added
    states_by_version: dict[tuple[str | None, str], list[dict[str, str]]] = {}
    for source in {source for source, _ in checked}:
        place = hub.source(source)
        if not isinstance(place, RegistrySource):  # a hub does not pass signatures on
            continue
        registry = place.registry
        if not registry.store.children(PREFIX):
            continue
        keys = entries[registry.name].trust if registry.name in entries else ()
        for name in (name for at, name in checked if at == source):
            path, _, version = name.partition("@")
            try:
                digest = registry.document(path).versions[version].digest
                manifest = registry.manifest(digest).to_bytes()
                states = [
                    {"key": key_id, "state": _state(manifest, key_id, data, keys, name)}
                    for key_id, data in signatures(registry, digest).items()
                ]
            except (DeltaHubError, LookupError):  # the damage is reported already, or the version was just removed
                continue
            if states:
                states_by_version[source, name] = states
    return states_by_version


def _state(manifest: bytes, key_id: str, data: bytes, keys: Sequence[str], version: str) -> str:
    from deltahub.signing import PublicKey, is_valid_signature, split_signatures, stated_version

    for pem in keys:
        key = PublicKey.parse(pem.encode(), "The settings")
        if key.id == key_id:
            names = [
                name
                for line in split_signatures(data)
                if is_valid_signature(manifest, line, key, name := stated_version(line) or "")
            ]
            return "good" if {version, ""} & set(names) else "signed under another name" if names else "bad"
    return "unknown key"
