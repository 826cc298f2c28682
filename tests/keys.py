"""Keys to sign with, made for each test."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


def new_key(path: Path, password: str | None = None) -> Path:
    """Make an elliptic key: the private one at `path`, the public one beside it, ending in ``.pub``."""
    key = ec.generate_private_key(ec.SECP256R1())
    how = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    public_of(path).write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def public_of(path: Path) -> Path:
    """Where `new_key` put the public key."""
    return path.with_name(f"{path.name}.pub")
