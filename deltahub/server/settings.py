"""How a hub is run: what everyone may do, what is accepted, and how much of it.

Processes of one hub get the same settings: they travel as JSON, and hold no secret.
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
_WORDS: Final = 4096  # bytes of a commit beside one file, about
EVERYWHERE = "*"  # as a namespace: all of them


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a hub; every value has a default that is safe on a machine of one's own.

    Attributes:
        public_url: how clients reach the hub, e.g. ``"https://hub.acme.org"``; None for the address in each request.
        hosts: names by which requests may call the hub; empty for any.
        anonymous: what callers without a token may do: ``"none"``, ``"read"`` (public repositories), ``"write"``.
        upload_mode: how clients of the Hub send files: ``"regular"`` inside the commit, which every client can, or ``"lfs"``.
        max_file: bytes of one file.
        max_commit: bytes of a commit, with the files inside it.
        max_body: bytes of any other request; fewer where a request names only a few things.
        buffered: bytes of bodies that all requests of a process hold in memory together; a caller may hold a quarter.
        max_header_count: headers of a request.
        rate: requests a second that one token, or one address without a token, may send on average; 0 for no limit.
        burst: requests that may come at once.
        failures: wrong tokens that one address may send in a minute.
        idle: seconds for which a request or an answer may stand still.
        open_metrics: whether /metrics needs no token of scope admin.
        pickle_namespaces: where pickle files are accepted; ``"*"`` for everywhere.
    """

    public_url: str | None = None
    hosts: tuple[str, ...] = ()
    anonymous: Scope = "read"
    upload_mode: UploadMode = "regular"
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
    pickle_namespaces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.anonymous not in SCOPES or self.anonymous == "admin":
            msg = f"Callers without a token cannot have scope {self.anonymous!r}: expected none, read or write."
            raise ConfigError(msg)
        if self.upload_mode not in MODES:
            msg = f"{self.upload_mode!r} is no upload mode: expected regular or lfs."
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
        """Bytes of a file that fits into a commit, where it is sent in base64."""
        return max(0, self.max_commit // 4 * 3 - _WORDS)

    def allows_pickle(self, namespace: str) -> bool:
        """Whether pickle files are accepted in a namespace."""
        return bool({namespace, EVERYWHERE} & set(self.pickle_namespaces))

    def to_json(self) -> str:
        """The settings as text, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """The settings that another process wrote."""
        found: Mapping[str, Any] = json.loads(text)
        lists = {name for name, kind in get_type_hints(cls).items() if kind == tuple[str, ...]}
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in found.items()}
        return cls(**{key: value for key, value in values.items() if key in known})
