"""Signatures: the holder of a private key vouches for a whole delta by signing the bytes of its manifest.

The signed content is a folder with only the manifest, as `acme/ner/v3/manifest.json`: the path states the name and the version that the
key vouches for, so the signature is not valid for the same content under another name. The manifest lists every file by its sha256, which
is checked on every read, so a signature of a few hundred bytes covers files of any size. It is a Sigstore bundle in the form of OpenSSF's
model-signing, with a key and without any service, so it can also be checked without DeltaHub (docs/signing.md). Earlier releases signed
`manifest.json` at the top of the folder, which states no name; such a signature is still checked. Several signatures by one key are
stored one per line.

Keys are elliptic (P-256, P-384 or P-521), in PEM files as openssl writes them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from deltahub.errors import ConfigError, IntegrityError
from deltahub.files.atomic import scratch, storage_errors
from deltahub.reference import Digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

PASSWORD: Final = "DELTAHUB_SIGN_PASSWORD"  # noqa: S105  (the variable's name) for an encrypted private key
MOST: Final = 64 << 10  # maximum bytes of the signatures of a key for one delta
_SIGNED: Final = "manifest.json"
_VERSION: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*@v[0-9]+)?")
_FOLDER: Final = "delta"  # the signature contains this name


@dataclass(frozen=True)
class PublicKey:
    """A key to verify signatures with.

    Attributes:
        pem: the key in PEM.
        id: sha256 of its DER form, 64 hex digits.
    """

    pem: str
    id: str

    @classmethod
    def read(cls, path: Path) -> PublicKey:
        """Read a public key.

        Raises:
            ConfigError: the file does not hold a public key.
            StorageError: the file cannot be read.
        """
        with storage_errors("Reading the key", path, "read"):
            data = path.read_bytes()
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: bytes, origin: str) -> PublicKey:
        """Parse a public key from PEM bytes.

        Args:
            origin: the origin of the bytes, for the message.

        Raises:
            ConfigError: the bytes are not a supported public key.
        """
        if b"PRIVATE KEY" in data:
            msg = (
                f"{origin} holds a private key; what checks signatures is the public one. Make it: openssl pkey -in KEY -pubout -out "
                "KEY.pub, and keep the private one to yourself."
            )
            raise ConfigError(msg)
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(data)
        except ValueError as error:
            msg = f"{origin} holds no public key in PEM ({error}). Expected a file that begins with -----BEGIN PUBLIC KEY-----."
            raise ConfigError(msg) from error
        if not isinstance(key, EllipticCurvePublicKey):
            raise _not_elliptic(origin, type(key).__name__)
        return _public(key)


class PrivateKey:
    """A key to sign deltas with.

    Args:
        path: its PEM file; for an encrypted key, the environment variable `DELTAHUB_SIGN_PASSWORD` holds the password.

    Raises:
        ConfigError: the file does not hold a private key, or the password is missing or wrong; or signing is not installed.
        StorageError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        _installed()
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        with storage_errors("Reading the key", path, "read"):
            data = path.read_bytes()
        self._path = path
        self._password = os.fsencode(os.environ.get(PASSWORD, "").rstrip("\r\n")) or None
        if b"PUBLIC KEY" in data:
            msg = f"{path} holds a public key, which checks signatures; signing needs the private one."
            raise ConfigError(msg)
        if b"ENCRYPTED" in data and self._password is None:
            msg = f"{path} is encrypted. Put its password into the environment variable {PASSWORD}."
            raise ConfigError(msg)
        try:
            key = load_pem_private_key(data, self._password if b"ENCRYPTED" in data else None)
        except (ValueError, TypeError) as error:  # the library's messages may contain parts of a key
            msg = f"{path} holds no private key in PEM that can be read with the password given. Check both."
            raise ConfigError(msg) from error
        if not isinstance(key, EllipticCurvePrivateKey):
            raise _not_elliptic(str(path), type(key).__name__)
        if b"ENCRYPTED" not in data:
            self._password = None
        self.public = _public(key.public_key())

    def sign(self, manifest: bytes, version: str = "") -> bytes:
        """Sign a delta.

        Args:
            manifest: the stored bytes of its manifest.
            version: the version to vouch for, ``"namespace/name@v3"``; empty for a signature that states none.
        """
        signing = _installed().signing
        with _laid_out(manifest, version) as folder:
            signature = folder.parent / "signature.json"
            config = signing.Config().use_elliptic_key_signer(private_key=self._path, password=self._password)
            config.sign(folder, signature)
            return signature.read_bytes()


def check(manifest: bytes, signature: bytes, key: PublicKey, version: str | None = None) -> None:
    """Verify one signature.

    Args:
        manifest: the stored bytes of the delta's manifest.
        version: the version that the signature must state, ``"namespace/name@v3"``; empty for none, None for any.

    Raises:
        IntegrityError: it is not a signature by this key for this delta.
        ConfigError: signing is not installed.
    """
    verifying = _installed().verifying
    remedy = "Ask for the delta to be signed again: deltahub sign REF --key KEY"
    subject = f"The signature of {Digest.of(manifest)}"
    if len(signature) > MOST:
        raise IntegrityError(subject, f"{MOST} bytes at most", f"{len(signature)} bytes", remedy)
    with _laid_out(manifest, (stated_version(signature) or "") if version is None else version) as folder:
        (folder.parent / "signature.json").write_bytes(signature)
        (folder.parent / "key.pub").write_text(key.pem, "ascii")
        config = verifying.Config().use_elliptic_key_verifier(public_key=folder.parent / "key.pub")
        try:
            config.verify(folder, folder.parent / "signature.json")
        except Exception as error:  # a hostile signature may cause any error in the library
            actual = f"another one ({type(error).__name__})"
            raise IntegrityError(subject, f"one by the key {key.id[:16]} over this delta", actual, remedy) from error


def trusted_signer(
    manifest: bytes, signatures: Mapping[str, bytes], keys: Mapping[str, PublicKey], version: str = ""
) -> str | None:
    """Return the id of the first trusted key that signed a delta; None if there is none.

    Args:
        signatures: signatures by the id of their claimed key; several by one key are one per line.
        keys: the trusted keys by id.
        version: the version that the signature must state, as in `check`.
    """
    for key_id in sorted(signatures.keys() & keys.keys()):
        for signature in split_signatures(signatures[key_id]):
            if stated_version(signature) in (version, None) and is_valid_signature(
                manifest, signature, keys[key_id], version
            ):
                return key_id
    return None


def is_valid_signature(manifest: bytes, signature: bytes, key: PublicKey, version: str = "") -> bool:
    """Return whether a signature is valid for a key, a delta and a version, as in `check`."""
    try:
        check(manifest, signature, key, version)
    except IntegrityError:
        return False
    return True


def split_signatures(data: bytes) -> list[bytes]:
    """Split the stored signatures of a key, one per line."""
    return [line for line in data.split(b"\n") if line.strip()] or [data]


def stated_version(signature: bytes) -> str | None:
    """Return the version that a signature states, ``"namespace/name@v3"``; empty for none, None if it is not a signature.

    The signature is not verified here.
    """
    try:
        payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
        (name,) = (entry["name"] for entry in payload["predicate"]["resources"])
        *path, version, _ = ["", "", *name.split("/")][-4:]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    full_version = f"{'/'.join(path)}@{version}" if version else ""
    return full_version if _VERSION.fullmatch(full_version) else None  # a path that leads elsewhere is not a version


@contextmanager
def _laid_out(manifest: bytes, version: str) -> Iterator[Path]:
    with scratch() as place:
        inside = place / _FOLDER / version.replace("@", "/")
        inside.mkdir(parents=True)
        (inside / _SIGNED).write_bytes(manifest)
        yield place / _FOLDER


def _public(key: EllipticCurvePublicKey) -> PublicKey:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return PublicKey(pem, hashlib.sha256(der).hexdigest())


def _installed() -> Any:
    try:
        import model_signing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        msg = f"Signatures need the extra 'sign' ({error}). Install it: pip install 'deltahub[sign]'"
        raise ConfigError(msg) from error
    return cast("Any", model_signing)


def _not_elliptic(origin: str, key_type: str) -> ConfigError:
    msg = f"{origin} holds another kind of key ({key_type}), expected an elliptic key. Make one: openssl ecparam -name prime256v1 -genkey -noout -out KEY"
    return ConfigError(msg)
