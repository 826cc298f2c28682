"""One source set up by the user: its name, its kind, and its address.

No secret is stored: only the address, and the name of a profile or of an environment variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from deltahub.errors import ConfigError
from deltahub.plugins.entry_points import STORES
from deltahub.reference import check_name, check_source
from deltahub.stores.base import Store
from deltahub.stores.local import LocalStore
from deltahub.stores.services import SCHEMES, service_of

LOCAL: Final = "local"
HF: Final = "hf"
REGISTRY: Final = "registry"
HUB: Final = "hub"
WEB: Final = ("https://", "http://")
RESERVED: Final = frozenset({LOCAL, HF, "http", "https", "file", "s3", "gs", "az", "sha256", "url"})
_PUBLIC: Final = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://")
_OF_BUCKETS: Final = ("endpoint", "region", "profile", "option")


@dataclass(frozen=True)
class SourceEntry:
    """One source of the user.

    Attributes:
        name: its name in references.
        url: the absolute folder of a registry, or that of a bucket, such as ``"s3://bucket/prefix"``, or the address of a hub.
        endpoint: for a registry in a bucket: URL of the server; None for the environment's, or else the service's own.
        region: the region of a bucket in S3; None as for `endpoint`.
        profile: the profile in ~/.aws with the keys, for S3; None for the environment's.
        kind: ``"registry"`` or ``"hub"``, a server that speaks the Hugging Face protocol.
        token_env: for a hub: the environment variable with the token, if not `token_variable`.
        namespaces: namespaces looked up only here when a name is given without a source.
        trust: for a registry: public keys in PEM, one of which must have signed every delta taken from it; empty to require none.
        options: for a registry in a bucket: settings of the client, each ``"name=value"`` (`deltahub.stores.services`).
    """

    name: str
    url: str
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    kind: str = REGISTRY
    token_env: str | None = None
    namespaces: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @classmethod
    def checked(
        cls,
        name: str,
        url: str,
        *,
        namespaces: Collection[str] = (),
        options: Collection[str] = (),
        **places: str | None,
    ) -> SourceEntry:
        """Create a source from the user's settings.

        Args:
            url: a folder, created at the first push, a bucket such as ``"s3://bucket/prefix"``, or the http(s) address of a hub.
            namespaces: namespaces to look up only here.
            options: for a bucket, each ``"name=value"``.
            places: endpoint, region and profile, for a bucket; token_env, for a hub.

        Raises:
            ReferenceSyntaxError: the name cannot be a source, or a namespace is not well formed.
            ConfigError: the name is reserved, or another value is not well formed or holds a secret.
        """
        if check_source(name) in RESERVED:
            msg = f"{name!r} is a reserved source name. Choose another name."
            raise ConfigError(msg)
        bound_namespaces = tuple(dict.fromkeys(check_name(namespace, "namespace") for namespace in namespaces))
        given_options = {key: value for key, value in places.items() if value is not None}
        in_bucket = {**given_options, **({"option": ""} if options else {})}
        if url.startswith(WEB):
            _refuse(in_bucket, _OF_BUCKETS, "registries in buckets", f"{url} is a hub")
            token_env = given_options.get("token_env")
            return cls(name, _hub(url, token_env), kind=HUB, token_env=token_env, namespaces=bound_namespaces)
        _refuse(given_options, ("token_env",), "hubs", f"{url} is a registry")
        if not url.startswith(SCHEMES):
            _refuse(in_bucket, _OF_BUCKETS, "registries in buckets", f"{url} is not in one")
        endpoint, region, profile = map(places.get, ("endpoint", "region", "profile"))
        entry = cls(name, place_of(url), endpoint, region, profile, namespaces=bound_namespaces, options=tuple(options))
        entry.store()
        return entry

    @property
    def token_variable(self) -> str:
        """The environment variable with a hub's token, e.g. ``"DELTAHUB_TOKEN_TEAM"``."""
        return self.token_env or f"DELTAHUB_TOKEN_{self.name.upper().replace('-', '_')}"

    def store(self) -> Store:
        """Return the store of a registry's bytes, without accessing it yet.

        Raises:
            ConfigError: the address is not well formed.
        """
        if not (scheme := _SCHEME.match(self.url)):
            return LocalStore(Path(self.url))
        if not self.url.startswith(SCHEMES):
            store: Store = STORES.load(_store_entry(scheme[1], self.url))(self.url)
            return store
        from deltahub.stores.bucket import Bucket  # late import: only needed for buckets
        from deltahub.stores.bucket_store import BucketStore

        return BucketStore(
            Bucket.parse(
                self.url, endpoint=self.endpoint, region=self.region, profile=self.profile, options=self.options
            )
        )

    @property
    def public(self) -> bool:
        """Whether anyone can register a free name there; `hf` counts as public wherever HF_ENDPOINT points, since it may be a mirror."""
        return self.kind == HUB and (self.name == HF or (urlsplit(self.url).hostname or "") in _PUBLIC)

    @property
    def missing(self) -> bool:
        """Whether this is a registry in a folder that does not exist."""
        return self.kind == REGISTRY and not _SCHEME.match(self.url) and not Path(self.url).exists()

    @property
    def place(self) -> str:
        """The address for display."""
        return self.url if self.kind == HUB else self.store().url

    def to_document(self) -> dict[str, Any]:
        """Return the JSON form of the source, without empty values."""
        document = {key: value for key, value in asdict(self).items() if value and (key, value) != ("kind", REGISTRY)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}

    @classmethod
    def from_document(cls, document: Any) -> SourceEntry:
        """Read the JSON form of a source.

        Raises:
            ReferenceSyntaxError: the name cannot be a source.
            TypeError: a value is not text, or a key is unknown.
            ValueError: the kind is unknown.
        """
        lists = {key: tuple(document.get(key, ())) for key in ("namespaces", "trust", "options")}
        entry = cls(**{**document, **lists})
        check_source(entry.name)
        facts = [
            *entry.namespaces,
            *entry.trust,
            *entry.options,
            *(value for key, value in asdict(entry).items() if key not in lists),
        ]
        if not all(value is None or isinstance(value, str) for value in facts):
            msg = f"its entry for {entry.name!r} has a value that is not text"
            raise TypeError(msg)
        if entry.kind not in (REGISTRY, HUB):
            msg = f"{entry.name!r} is of the kind {entry.kind!r}; expected {REGISTRY} or {HUB}"
            raise ValueError(msg)
        return entry


def place_of(url: str) -> str:
    """Normalise a registry's address: an absolute folder, with its ``~`` expanded.

    Raises:
        ConfigError: the address is neither a folder nor a bucket such as ``s3://bucket/prefix``, nor that of an installed package's store.
    """
    if service := service_of(url):
        return f"{service.scheme}{url.removeprefix(service.scheme).rstrip('/')}"
    if scheme := _SCHEME.match(url):
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            msg = f"The address of a registry is like {scheme[0]}place/prefix, without user, secret, '?' or '#'."
            raise ConfigError(msg)
        _store_entry(scheme[1], url)
        return url.rstrip("/")
    if "://" in url:
        raise _no_registry(url)
    return str(Path(os.path.abspath(Path(url).expanduser())))  # noqa: PTH100  (keeps symbolic links)


def is_place(text: str) -> bool:
    """Return whether a text is a registry's address, a folder or a URL, rather than a source's name."""
    return text.startswith((".", "/", "~")) or _SCHEME.match(text) is not None or Path(text).is_absolute()


def _store_entry(scheme: str, url: str) -> EntryPoint:
    """Return the entry point of the stores of a URL scheme.

    Raises:
        ConfigError: no installed package has one, or several have.
    """
    entry = None if scheme in RESERVED else STORES.find(scheme)
    if entry is None:
        raise _no_registry(url)
    return entry


def _no_registry(url: str) -> ConfigError:
    return ConfigError(
        f"{url!r} is not the location of a registry: expected a folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix. "
        f"A store for other URLs needs an installed package that adds it ({STORES.name})."
    )


def _hub(url: str, token_env: str | None) -> str:
    parts = urlsplit(url)
    if "@" in url or parts.query or parts.fragment or not parts.hostname:
        msg = (
            "The address of a hub is like https://hub.example.org, without user, secret, '?' or '#'. Its token belongs "
            "into an environment variable, which --token-env names."
        )
        raise ConfigError(msg)
    if token_env is not None and not _VARIABLE.fullmatch(token_env):
        msg = (
            "--token-env takes the name of an environment variable, such as TEAM_TOKEN, and never the token itself. "
            "Set the variable and name it."
        )
        raise ConfigError(msg)
    return url.rstrip("/")


def _refuse(options: dict[str, str], keys: Collection[str], of: str, reason: str) -> None:
    if refused_keys := [key for key in keys if key in options]:
        msg = f"{refused_keys[0]} is for {of}, and {reason}. Leave it out."
        raise ConfigError(msg)
