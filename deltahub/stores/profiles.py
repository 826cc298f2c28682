"""The profiles of ~/.aws, as every AWS tool reads them: credentials, region and endpoint by profile name."""

from __future__ import annotations

import configparser
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deltahub.errors import ConfigError
from deltahub.text.credentials import header_value
from deltahub.text.suggestions import suggest

# Sources of credentials in the environment that the client itself uses, before any file.
_ENVIRONMENT: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_SIGN_IN: Final = ("role_arn", "sso_session", "sso_start_url", "credential_process", "login_session")


@dataclass(frozen=True)
class Login:
    """The credentials and settings for a server.

    Attributes:
        credentials: called for keys; None for those that the client finds in the environment or the machine.
        region: the profile's region, if any.
        endpoint: the URL of the profile's server, if any.
    """

    credentials: Callable[[], Any] | None = None
    region: str | None = None
    endpoint: str | None = None


def login(profile: str | None, *, signs: bool = True) -> Login:
    """Return the credentials of a profile, or else of the environment, or else of the environment's profile or `default`.

    Args:
        profile: its name; None for the environment's.
        signs: whether requests are signed at all; a public bucket is read without.

    Raises:
        ConfigError: the profile does not exist, holds no keys, or needs boto3 to sign in.
    """
    if profile is None and (not signs or any(os.environ.get(name) for name in _ENVIRONMENT)):
        return Login()
    name = profile or os.environ.get("AWS_PROFILE") or "default"
    profiles = _profiles()
    if name not in profiles:
        if profile is None and not os.environ.get("AWS_PROFILE"):
            if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
                msg = "No credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile."
                raise ConfigError(msg)
            return Login()
        hint = suggest(name, profiles) if profiles else "there is none at all."
        msg = f"There is no profile {name!r} in {_credentials_file()} or {_config_file()}; {hint}"
        raise ConfigError(msg)
    settings = profiles[name]
    return Login(_credentials(name, settings), settings.get("region"), settings.get("endpoint_url"))


def ca_bundle(profile: str | None) -> bytes | None:
    """Read the certificates of a private CA, in PEM, from AWS_CA_BUNDLE or the profile's ca_bundle; None if neither names a file.

    Raises:
        ConfigError: the file cannot be read.
    """
    name = profile or os.environ.get("AWS_PROFILE") or "default"
    path = os.environ.get("AWS_CA_BUNDLE")
    if not path:
        with contextlib.suppress(ConfigError):  # `login` reports a broken profile
            path = _profiles().get(name, {}).get("ca_bundle")
    if not path:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        msg = f"The certificates in {path} cannot be read: {error.strerror}. Correct AWS_CA_BUNDLE, or ca_bundle of the profile."
        raise ConfigError(msg) from error


def _credentials(name: str, settings: Mapping[str, str]) -> Callable[[], Any] | None:
    if how := next((key for key in _SIGN_IN if key in settings), None):
        try:
            import boto3
            from obstore.auth.boto3 import Boto3CredentialProvider
        except ModuleNotFoundError as error:
            msg = f"The profile {name!r} signs in with {how}, which needs the package boto3: pip install boto3"
            raise ConfigError(msg) from error
        return Boto3CredentialProvider(boto3.session.Session(profile_name=name))
    if "aws_access_key_id" not in settings:  # the profile may only set a region
        return None
    access, secret, token = (
        header_value(settings.get(key, ""), f"{key} of the profile {name!r}")
        for key in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    )
    keys = {"access_key_id": access, "secret_access_key": secret, "token": token or None, "expires_at": None}
    return lambda: keys


def _profiles() -> dict[str, dict[str, str]]:
    """Return every profile of both files; a key in the credentials file overrides the config file."""
    profiles: dict[str, dict[str, str]] = {}
    for path in (_config_file(), _credentials_file()):
        parser = configparser.RawConfigParser(default_section="")
        try:
            parser.read(path, "utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            msg = f"{path} cannot be read as a file of profiles: {error}. Correct it, or set AWS_ACCESS_KEY_ID."
            raise ConfigError(msg) from error
        for section in parser.sections():
            profiles.setdefault(section.removeprefix("profile ").strip(), {}).update(parser.items(section))
    return profiles


def _credentials_file() -> Path:
    return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()


def _config_file() -> Path:
    return Path(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
