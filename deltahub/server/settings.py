"""Settings of a hub: permissions, accepted content, and limits.

All processes of a hub get the same settings, passed as JSON without secrets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, get_type_hints

from deltahub.errors import ConfigError
from deltahub.server.access import SCOPES, Scope

UploadMode = Literal["regular", "lfs"]
MODES: Final[tuple[UploadMode, ...]] = ("regular", "lfs")
_WORDS: Final = 4096  # approximate bytes of a commit besides one file
EVERYWHERE = "*"  # as a namespace: all namespaces


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a hub; every default is safe on a personal machine.

    Attributes:
        public_url: URL of the hub for clients, e.g. ``"https://hub.acme.org"``; None for the URL of each request.
        hosts: allow-list of host names; empty for any.
        anonymous: scope of callers without a token: ``"none"``, ``"read"`` (public repositories) or ``"write"``.
        upload_mode: how Hub clients send files: ``"regular"`` inside the commit, which every client supports, or ``"lfs"``.
        direct: whether clients fetch large files from the bucket of the registry, and send them there, at signed URLs of its server.
        max_file: maximum bytes of a file.
        max_commit: maximum bytes of a commit, including the files inside it.
        max_body: maximum bytes of any other body; less for requests that name only a few things.
        buffered: bytes of bodies held in memory by all requests of a process; a caller may hold a quarter.
        max_header_count: maximum number of headers in a request.
        rate: average requests per second for one token, or one address without a token; 0 for no limit.
        burst: requests that may come at once.
        failures: invalid tokens per minute from one address.
        idle: timeout in seconds for a request or response without progress.
        open_metrics: whether /metrics works without a token of scope admin.
        private_webhooks: whether webhooks may have private addresses, such as those of this machine.
        pickle_namespaces: namespaces that accept pickle files; ``"*"`` for all.
    """

    public_url: str | None = None
    hosts: tuple[str, ...] = ()
    anonymous: Scope = "read"
    upload_mode: UploadMode = "regular"
    direct: bool = False
    max_file: int = 5 << 30
    max_commit: int = 7 << 30
    max_body: int = 1 << 20
    buffered: int = 256 << 20
    max_header_count: int = 100
    rate: float = 200.0
    burst: int = 2000
    failures: int = 20
    idle: float = 60.0
    open_metrics: bool = True
    private_webhooks: bool = False
    pickle_namespaces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.anonymous not in SCOPES or self.anonymous == "admin":
            msg = f"Callers without a token cannot have scope {self.anonymous!r}: expected none, read or write."
            raise ConfigError(msg)
        if self.upload_mode not in MODES:
            msg = f"{self.upload_mode!r} is not an upload mode: expected regular or lfs."
            raise ConfigError(msg)
        for field in (
            "max_file",
            "max_commit",
            "max_body",
            "buffered",
            "max_header_count",
            "burst",
            "failures",
            "idle",
        ):
            if getattr(self, field) <= 0:
                msg = f"{field} must be more than 0, got {getattr(self, field)}."
                raise ConfigError(msg)

    @property
    def largest_in_commit(self) -> int:
        """Maximum bytes of a file inside a commit, where it is sent in base64."""
        return max(0, self.max_commit // 4 * 3 - _WORDS)

    def allows_pickle(self, namespace: str) -> bool:
        """Return whether a namespace accepts pickle files."""
        return bool({namespace, EVERYWHERE} & set(self.pickle_namespaces))

    def to_json(self) -> str:
        """Return the settings as JSON, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Parse the settings written by another process."""
        document: Mapping[str, Any] = json.loads(text)
        lists = {name for name, kind in get_type_hints(cls).items() if kind == tuple[str, ...]}
        names = {field.name for field in fields(cls)}
        values: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in document.items()}
        return cls(**{key: value for key, value in values.items() if key in names})
