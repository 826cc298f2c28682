"""The location of a store in an S3 server, and the clients with its credentials.

Values missing from the registry's configuration come from the usual AWS sources: AWS_ACCESS_KEY_ID and related variables,
AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE, ~/.aws/credentials and ~/.aws/config, and last the machine itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from deltahub.errors import ConfigError
from deltahub.stores import profiles
from deltahub.text.credentials import header_value

if TYPE_CHECKING:
    from obstore.store import S3Store as Client

SCHEME: Final = "s3://"
PART: Final = 8 << 20  # the most bytes per request
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX: Final = re.compile(r"(?!\.\.?(/|$))[A-Za-z0-9._=-]+(/(?!\.\.?(/|$))[A-Za-z0-9._=-]+)*")
# The client would read these itself and put them into headers unchecked.
_IN_HEADERS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)
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
    """A bucket and prefix in an S3 server.

    Attributes:
        name: the name of the bucket.
        prefix: the common prefix of all keys, without leading or trailing slashes; may be empty.
        endpoint: URL of the server; None for that of the environment or the profile, or else AWS itself.
        region: None for that of the environment or the profile.
        profile: of ~/.aws/credentials or ~/.aws/config; None for the environment's keys.
    """

    name: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None

    @classmethod
    def parse(
        cls, url: str, *, endpoint: str | None = None, region: str | None = None, profile: str | None = None
    ) -> Bucket:
        """Parse ``s3://bucket/prefix``.

        Raises:
            ConfigError: the URL or the endpoint is not well formed, or contains a secret.
        """
        name, _, prefix = url.removeprefix(SCHEME).partition("/")
        prefix = prefix.strip("/")
        if "@" in url or (endpoint and "@" in endpoint):
            msg = (
                "The address of a registry must hold no user or secret. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or name a profile of ~/.aws/credentials."
            )
            raise ConfigError(msg)
        if not url.startswith(SCHEME) or not _NAME.fullmatch(name) or (prefix and not _PREFIX.fullmatch(prefix)):
            msg = (
                f"{url!r} is not a location in a bucket: expected s3://bucket/prefix, the bucket of 3 to 63 lower-case letters, "
                "digits, '-' and '.', the prefix of letters, digits, '.', '_', '=', '-' and '/'."
            )
            raise ConfigError(msg)
        if endpoint is not None and not _ENDPOINT.fullmatch(endpoint.rstrip("/")):
            msg = f"{endpoint!r} is not the address of an S3 server: expected a URL such as https://s3.example.org."
            raise ConfigError(msg)
        return cls(name, prefix, endpoint.rstrip("/") if endpoint else None, region, profile)

    @property
    def url(self) -> str:
        """The location, for people: ``"s3://bucket/prefix at https://s3.example.org"``."""
        url = f"{SCHEME}{self.name}/{self.prefix}".rstrip("/")
        return f"{url} at {self.server}" if self.server else url

    @property
    def server(self) -> str | None:
        """The URL of the server in the configuration or the environment; None for AWS."""
        variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        return self.endpoint or next((url for name in variables if (url := os.environ.get(name, "").strip())), None)


def connect(bucket: Bucket, patience: Patience) -> tuple[Client, Client]:
    """Return clients for reading and for writing; neither sends a request yet.

    Raises:
        ConfigError: obstore is not installed, the profile or its certificates cannot be used, or a key is not valid in a header.
    """
    try:
        from obstore.store import S3Store as Client  # late: no other store needs it
    except ModuleNotFoundError as error:
        msg = f"{bucket.url} needs the package obstore, which is not installed: pip install 'deltahub[s3]'"
        raise ConfigError(msg) from error

    login = profiles.login(bucket.profile)
    endpoint = bucket.server or login.endpoint
    config: dict[str, Any] = {"conditional_put": "etag", "disable_bulk_delete": True} | _corrected()
    if endpoint:
        config |= {"aws_endpoint": endpoint, "aws_endpoint_url_s3": endpoint}
    if region := bucket.region or login.region:
        config |= {"aws_region": header_value(region, "The region")}
    common: dict[str, Any] = {
        "allow_http": (endpoint or "").startswith("http://"),
        "connect_timeout": _span(patience.connect),
    }
    if certificates := profiles.ca_bundle(bucket.profile):
        common["root_certificate"] = certificates
    retry: Any = {
        "max_retries": patience.retries,
        "backoff": {"init_backoff": _span(patience.backoff), "max_backoff": _span(patience.backoff * 50), "base": 2},
        "retry_timeout": _span(patience.total),
    }
    # A download may last as long as bytes arrive; an upload receives none until it is done.
    limits: tuple[dict[str, Any], ...] = (
        {"read_timeout": _span(patience.answer), "timeout": _span(86400)},
        {"timeout": _span(patience.upload)},
    )
    reader, writer = (
        Client(
            bucket.name,
            prefix=bucket.prefix or None,
            config=config,  # type: ignore[arg-type]  # a dictionary of its keys
            client_options=common | limit,  # type: ignore[arg-type]
            retry_config=retry,
            credential_provider=login.credentials,
        )
        for limit in limits
    )
    return reader, writer


def _corrected() -> dict[str, str]:
    """Return the client's settings in the environment that need whitespace stripped at their ends, stripped."""
    values = {name: os.environ.get(name, "") for name in _IN_HEADERS}
    checked = {name: header_value(text, f"The environment variable {name}") for name, text in values.items()}
    return {name.lower(): text for name, text in checked.items() if text != values[name]}


def _span(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
