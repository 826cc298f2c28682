"""The location of a store in a bucket of S3, Google Cloud Storage or Azure, without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from deltahub.errors import ConfigError
from deltahub.stores.services import S3, SCHEMES, Service, fault_of, service_of

PART: Final = 8 << 20  # the most bytes per request
_PREFIX: Final = re.compile(r"(?!\.\.?(/|$))[A-Za-z0-9._=-]+(/(?!\.\.?(/|$))[A-Za-z0-9._=-]+)*")
_ENDPOINT: Final = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*")


@dataclass(frozen=True)
class Patience:
    """Timeouts and retries for a server.

    Attributes:
        connect: seconds to wait for a connection.
        answer: seconds to wait for the next byte of an answer.
        upload: seconds for a whole request that sends at most `PART` bytes.
        retries: how often a request is repeated after a lost connection or an answer 429 or 5xx.
        backoff: seconds before the first retry; each further wait is up to twice as long.
        total: seconds after which there are no more retries.
    """

    connect: float = 5.0
    answer: float = 30.0
    upload: float = 300.0
    retries: int = 6
    backoff: float = 0.1
    total: float = 60.0


@dataclass(frozen=True)
class Bucket:
    """A bucket and prefix in a service.

    Attributes:
        name: the name of the bucket, which Azure calls a container.
        prefix: the common prefix of all keys, without leading or trailing slashes; may be empty.
        endpoint: URL of the server; None for that of the environment or the profile, or else the service's own.
        region: of S3; None for that of the environment or the profile.
        profile: of ~/.aws/credentials or ~/.aws/config, for S3; None for the environment's keys.
        service: the service that keeps it.
        options: settings of the client, each ``"name=value"`` (`Service.options`).
    """

    name: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    service: Service = S3
    options: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        options: Sequence[str] = (),
    ) -> Bucket:
        """Parse ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.

        Raises:
            ConfigError: the URL, the endpoint or an option is not well formed, or contains a secret.
        """
        service = service_of(url) or S3
        name, _, prefix = url.removeprefix(service.scheme).partition("/")
        prefix = prefix.strip("/")
        if "@" in url or (endpoint and "@" in endpoint):
            msg = f"The address of a registry must hold no user or secret. {service.sign_in}"
            raise ConfigError(msg)
        if (
            not url.startswith(SCHEMES)
            or not service.names.fullmatch(name)
            or (prefix and not _PREFIX.fullmatch(prefix))
        ):
            msg = (
                f"{url!r} is not a location in a bucket: expected {service.scheme}bucket/prefix, the bucket of {service.naming}, "
                "the prefix of letters, digits, '.', '_', '=', '-' and '/'."
            )
            raise ConfigError(msg)
        if endpoint is not None and not _ENDPOINT.fullmatch(endpoint.rstrip("/")):
            msg = f"{endpoint!r} is not the address of a server: expected a URL such as https://s3.example.org."
            raise ConfigError(msg)
        if service is not S3 and (region or profile):
            msg = f"{'region' if region else 'profile'} is for buckets in S3, and {url} is in {service.title}. {service.sign_in}"
            raise ConfigError(msg)
        if fault := next(filter(None, (fault_of(service, option) for option in options)), None):
            raise ConfigError(fault)
        return cls(name, prefix, endpoint.rstrip("/") if endpoint else None, region, profile, service, tuple(options))

    @property
    def url(self) -> str:
        """The location, for people: ``"s3://bucket/prefix at https://s3.example.org"``."""
        url = f"{self.service.scheme}{self.name}/{self.prefix}".rstrip("/")
        return f"{url} at {self.server}" if self.server else url

    @property
    def server(self) -> str | None:
        """The URL of the server in the configuration or the environment; None for the service's own."""
        values = (os.environ.get(name, "").strip() for name in self.service.endpoints)
        return self.endpoint or next((url for url in values if url), None)
