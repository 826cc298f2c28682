"""The clients of a bucket, with the credentials of the environment, a profile or the machine.

Values missing from the registry's configuration come from where every tool of the service looks: for S3, AWS_ACCESS_KEY_ID and related
variables, AWS_PROFILE, ~/.aws/credentials and ~/.aws/config; for Google, GOOGLE_APPLICATION_CREDENTIALS; for Azure,
AZURE_STORAGE_ACCOUNT_NAME and related variables; and last the machine itself.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from deltahub.errors import ConfigError
from deltahub.stores import profiles
from deltahub.stores.bucket import Bucket, Patience
from deltahub.stores.services import AZURE, GOOGLE, S3
from deltahub.text.credentials import header_value

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

    Client: TypeAlias = S3Store | GCSStore | AzureStore


def connect(bucket: Bucket, patience: Patience) -> tuple[Client, Client]:
    """Return clients for reading and for writing; neither sends a request yet.

    Raises:
        ConfigError: obstore is not installed, the account, the profile or its certificates cannot be used, or a key is not valid in a
            header.
    """
    try:
        import obstore.store  # late: no other store needs it
    except ModuleNotFoundError as error:
        msg = f"{bucket.url} needs the package obstore, which is not installed: pip install 'deltahub[buckets]'"
        raise ConfigError(msg) from error
    from obstore.exceptions import BaseError

    kinds: dict[str, type[Client]] = {
        S3.scheme: obstore.store.S3Store,
        GOOGLE.scheme: obstore.store.GCSStore,
        AZURE.scheme: obstore.store.AzureStore,
    }
    config, common, credentials = _settings(bucket)
    common |= {"connect_timeout": _span(patience.connect)}
    retry: Any = {
        "max_retries": patience.retries,
        "backoff": {"init_backoff": _span(patience.backoff), "max_backoff": _span(patience.backoff * 50), "base": 2},
        "retry_timeout": _span(patience.total),
    }
    # A download may last as long as bytes arrive; an upload receives none until it is done.
    connections: tuple[Any, ...] = (
        common | {"read_timeout": _span(patience.answer), "timeout": _span(86400)},
        common | {"timeout": _span(patience.upload)},
    )
    given: dict[str, Any] = {"config": config, "retry_config": retry}
    if credentials is not None:
        given["credential_provider"] = credentials
    try:
        reader, writer = (
            kinds[bucket.service.scheme](bucket.name, prefix=bucket.prefix or None, client_options=options, **given)
            for options in connections
        )
    except (BaseError, FileNotFoundError) as error:  # without an account, or with a file of it that cannot be read
        msg = f"{bucket.url} cannot be used: {str(error).splitlines()[0]}. {bucket.service.sign_in}"
        raise ConfigError(msg) from error
    return reader, writer


def _settings(bucket: Bucket) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return the client's settings, those of its connections, and what provides its credentials."""
    config: dict[str, Any] = _corrected(bucket.service.headers)
    config |= dict(option.split("=", 1) for option in bucket.options)
    if bucket.service is not S3:
        endpoint = bucket.server
        if endpoint:
            config["base_url" if bucket.service is GOOGLE else "endpoint"] = endpoint
        return config, {"allow_http": (endpoint or "").startswith("http://")}, None
    login = profiles.login(bucket.profile, signs="skip_signature=true" not in bucket.options)
    config |= {"conditional_put": "etag", "disable_bulk_delete": True}
    endpoint = bucket.server or login.endpoint
    if endpoint:
        config |= {"aws_endpoint": endpoint, "aws_endpoint_url_s3": endpoint}
    if region := bucket.region or login.region:
        config |= {"aws_region": header_value(region, "The region")}
    common: dict[str, Any] = {"allow_http": (endpoint or "").startswith("http://")}
    if certificates := profiles.ca_bundle(bucket.profile):
        common["root_certificate"] = certificates
    return config, common, login.credentials


def _corrected(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the client's settings in the environment that need whitespace stripped at their ends, stripped."""
    values = {name: os.environ.get(name, "") for name in names}
    checked = {name: header_value(text, f"The environment variable {name}") for name, text in values.items()}
    return {name.lower(): text for name, text in checked.items() if text != values[name]}


def _span(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
