"""The services that keep buckets: S3, Google Cloud Storage and Azure Blob Storage, and the differences between them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

_OPTION: Final = re.compile(r"[A-Za-z0-9:/._+=@~ -]{1,512}")


@dataclass(frozen=True)
class Service:
    """A service that keeps objects in buckets.

    Attributes:
        scheme: of the URLs of its buckets, e.g. ``"s3://"``.
        title: its name for people.
        names: pattern of the names of its buckets.
        naming: that pattern in words.
        tag: the field of an object's metadata that identifies its bytes in a conditional write.
        endpoints: environment variables with the URL of the server, first to last.
        keys: what the user set to sign in, for an error about it.
        sign_in: a sentence on how to sign in.
        options: what can be set for each registry, by the name of the client's setting; none holds a secret.
        headers: environment variables that the client itself puts into headers, to be checked before.
    """

    scheme: str
    title: str
    names: re.Pattern[str]
    naming: str
    tag: Literal["e_tag", "version"]
    endpoints: tuple[str, ...]
    keys: str
    sign_in: str
    options: Mapping[str, str]
    headers: tuple[str, ...]


S3: Final = Service(
    scheme="s3://",
    title="S3",
    names=re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    naming="3 to 63 lower-case letters, digits, '-' and '.'",
    tag="e_tag",
    endpoints=("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    keys="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    sign_in="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile.",
    options={
        "virtual_hosted_style_request": "true for addresses such as https://bucket.s3.example.org; by default the path has the bucket",
        "server_side_encryption": "AES256, aws:kms or aws:kms:dsse",
        "sse_kms_key_id": "the key of aws:kms",
        "sse_bucket_key_enabled": "true to use a bucket key with aws:kms",
        "checksum_algorithm": "SHA256 to send a checksum that the server verifies",
        "request_payer": "true where the reader pays",
        "skip_signature": "true to read a public bucket without keys",
        "unsigned_payload": "true to leave the bytes out of the signature, over HTTPS",
    },
    headers=(
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    ),
)

GOOGLE: Final = Service(
    scheme="gs://",
    title="Google Cloud Storage",
    names=re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]"),
    naming="3 to 63 lower-case letters, digits, '-', '_' and '.'",
    tag="version",
    endpoints=("GOOGLE_BASE_URL",),
    keys="the file that GOOGLE_APPLICATION_CREDENTIALS names",
    sign_in="Set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or run gcloud auth application-default login.",
    options={
        "service_account": "the file of a service account",
        "skip_signature": "true to read a public bucket without an account",
    },
    headers=("GOOGLE_BEARER_TOKEN", "GOOGLE_BASE_URL"),
)

AZURE: Final = Service(
    scheme="az://",
    title="Azure Blob Storage",
    names=re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"),
    naming="3 to 63 lower-case letters, digits and single '-'",
    tag="e_tag",
    endpoints=("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    keys="AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    sign_in=(
        "Set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY, or run az login and set "
        "AZURE_USE_AZURE_CLI=true."
    ),
    options={
        "account_name": "the storage account",
        "use_azure_cli": "true to use the sign-in of az login",
        "skip_signature": "true to read a public container without an account",
    },
    headers=("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_TOKEN", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
)

SERVICES: Final = {service.scheme: service for service in (S3, GOOGLE, AZURE)}
SCHEMES: Final = tuple(SERVICES)


def service_of(url: str) -> Service | None:
    """Return the service of a bucket's URL; None for any other URL."""
    return next((service for service in SERVICES.values() if url.startswith(service.scheme)), None)


def fault_of(service: Service, option: str) -> str | None:
    """Return a sentence on an option ``name=value`` that cannot be set for a registry; None for one that can."""
    name, equals, value = option.partition("=")
    if not equals or name not in service.options:
        known = ", ".join(service.options)
        return f"{option.partition('=')[0]!r} is not an option of a bucket in {service.title}: expected NAME=VALUE with one of {known}."
    if not _OPTION.fullmatch(value):
        return f"The option {name} has a value that cannot be used: expected {service.options[name]}."
    return None
