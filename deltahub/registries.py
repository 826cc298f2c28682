"""The registries of this user beside the local one: what each is called as a source, and where it is.

They stand in `registries.json` among the user's settings, in the order in which they were added, which is the order in which a
name without a source is looked for. No secret is written there: only where to go, and the name of a profile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from deltahub.errors import ConfigError, NotFoundError
from deltahub.files import locked, staging, storage_errors, sync_folders, write_synced
from deltahub.nearest import closest
from deltahub.places import config_home
from deltahub.reference import check_source
from deltahub.schema import parse, problem
from deltahub.stores.base import Store
from deltahub.stores.local import LocalStore

LOCAL: Final = "local"
FILE: Final = "registries.json"
SCHEMA: Final = "registries.v1"
FORMAT_VERSION: Final = 1
S3: Final = "s3://"
_RESERVED: Final = frozenset({LOCAL, "hf", "http", "https", "file", "s3", "sha256"})


@dataclass(frozen=True)
class Configured:
    """One registry.

    Attributes:
        name: what it is called as a source.
        url: its folder, absolute, or ``"s3://bucket/prefix"``.
        endpoint: URL of the S3 server; None for what the environment says, or else AWS.
        region: of the bucket; the same.
        profile: of ~/.aws that has the keys; None for the environment's.
    """

    name: str
    url: str
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None

    @classmethod
    def checked(cls, name: str, url: str, **where: str | None) -> Configured:
        """A registry that a user describes.

        Args:
            url: a folder, which is made at the first push, or ``"s3://bucket/prefix"``.
            where: endpoint, region and profile, for a bucket.

        Raises:
            ReferenceSyntaxError: the name cannot be a source.
            ConfigError: the name has a meaning of its own, or the rest is not well formed or holds a secret.
        """
        if check_source(name) in _RESERVED:
            msg = f"{name!r} has a meaning of its own as a source. Choose another name."
            raise ConfigError(msg)
        given = [key for key, value in where.items() if value is not None]
        if "://" in url and not url.startswith(S3):
            msg = f"{url!r} is no place of a registry: expected a folder, or s3://bucket/prefix."
            raise ConfigError(msg)
        if url.startswith(S3):
            cls(name, url, **where).store()
            return cls(name, url, **where)
        if given:
            msg = f"{given[0]} is for registries in buckets, and {url} is a folder. Leave it out."
            raise ConfigError(msg)
        return cls(name, str(Path(os.path.abspath(Path(url).expanduser()))))  # noqa: PTH100  (a link stays a link)

    def store(self) -> Store:
        """Where it keeps its bytes; nothing is asked there yet.

        Raises:
            ConfigError: the address is not well formed.
        """
        if not self.url.startswith(S3):
            return LocalStore(Path(self.url))
        from deltahub.stores.bucket import Bucket  # late: only who has a bucket needs it
        from deltahub.stores.s3 import S3Store

        return S3Store(Bucket.parse(self.url, endpoint=self.endpoint, region=self.region, profile=self.profile))


@dataclass(frozen=True)
class Registries:
    """All registries that a user has set up.

    Attributes:
        known: by name, in the order in which they are searched, after the local one.
        default: the one that is pushed to and listed when none is named.
    """

    known: Mapping[str, Configured] = field(default_factory=dict)
    default: str = LOCAL

    @classmethod
    def read(cls) -> Registries:
        """What the user's settings say; none if there are none.

        Raises:
            ConfigError: the file is damaged.
        """
        path = config_home() / FILE
        try:
            with storage_errors("Reading the settings", path.parent, "read"):
                data = path.read_bytes()
        except OSError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return cls()
            raise
        try:
            return cls._from_document(parse(data))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _damaged(path, str(error)) from error

    @classmethod
    def _from_document(cls, document: Any) -> Registries:
        if (version := document["format_version"]) != FORMAT_VERSION:
            msg = f"it has format {version!r}, and this DeltaHub reads format {FORMAT_VERSION}"
            raise ValueError(msg)
        entries = [Configured(**entry) for entry in document["registries"]]
        for entry in entries:
            check_source(entry.name)
            if not all(value is None or isinstance(value, str) for value in asdict(entry).values()):
                msg = f"what it says of {entry.name!r} is no text"
                raise TypeError(msg)
        known = {entry.name: entry for entry in entries}
        default = document["default"]
        if default != LOCAL and default not in known:
            msg = f"its default {default!r} is not among its registries"
            raise LookupError(msg)
        return cls(known, default)

    def to_document(self) -> dict[str, Any]:
        """What is written, by the schema registries.v1."""
        entries = [asdict(entry) for entry in self.known.values()]
        registries = [{key: value for key, value in entry.items() if value is not None} for entry in entries]
        return {"format_version": FORMAT_VERSION, "default": self.default, "registries": registries}

    # ----- changes -----

    def add(self, entry: Configured) -> Registries:
        """These and one more, the last to be searched.

        Raises:
            ConfigError: another registry has the name.
        """
        if self.known.get(entry.name, entry) != entry:
            msg = (
                f"{entry.name!r} is {self.known[entry.name].url} already. Choose another name, or remove that one first: "
                f"deltahub registry remove {entry.name}"
            )
            raise ConfigError(msg)
        return replace(self, known={**self.known, entry.name: entry})

    def remove(self, name: str) -> Registries:
        """These without one; its deltas stay where they are.

        Raises:
            NotFoundError: there is none of this name.
        """
        if name == LOCAL:
            msg = "The local registry cannot be removed. DELTAHUB_HOME moves it."
            raise ConfigError(msg)
        self.require(name)
        known = {key: entry for key, entry in self.known.items() if key != name}
        return Registries(known, LOCAL if self.default == name else self.default)

    def make_default(self, name: str) -> Registries:
        """These with another default.

        Raises:
            NotFoundError: there is none of this name.
        """
        self.require(name)
        return replace(self, default=name)

    def require(self, name: str) -> None:
        """Check that a registry is known.

        Raises:
            NotFoundError: it is not; the message names the nearest names.
        """
        if name != LOCAL and name not in self.known:
            raise unknown_source(name, (LOCAL, *self.known))


def change(how: Callable[[Registries], Registries]) -> Registries:
    """Change the user's settings: read, change, and write as a whole, while no other process does.

    Returns:
        The changed ones.

    Raises:
        ConfigError: the file is damaged.
        StorageError: it cannot be written.
    """
    folder = config_home()
    with storage_errors("Writing the settings", folder), locked(folder / f"{FILE}.lock"):
        changed = how(Registries.read())
        document = changed.to_document()
        if wrong := problem(document, SCHEMA):
            raise _damaged(folder / FILE, wrong)
        with staging(folder) as stage:
            write_synced(stage / FILE, f"{json.dumps(document, indent=2)}\n".encode())
            os.replace(stage / FILE, folder / FILE)
            sync_folders([folder])
    return changed


def unknown_source(name: str, known: tuple[str, ...]) -> NotFoundError:
    """The error for a source that nobody has set up."""
    return NotFoundError(f"The source {name!r}", (f"known sources {', '.join(known)}",), closest(name, known))


def _damaged(path: Path, why: str) -> ConfigError:
    msg = f"{path} is damaged: {why}. Correct it, or delete it and add the registries again: deltahub registry add"
    return ConfigError(msg)
