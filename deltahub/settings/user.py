"""The user's sources of deltas: registries and hubs, their order, disabled ones, and the default.

They are stored in `registries.json` among the user's settings. A name without a source is looked up in the local registry first,
then in the sources in the order they were added, last in the Hugging Face Hub, unless another order is set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from deltahub.errors import ConfigError, NotFoundError
from deltahub.files.atomic import locked, staging, storage_errors, sync_folders, write_synced
from deltahub.files.documents import parse, problem
from deltahub.settings.environment import config_home, home
from deltahub.settings.source_entry import HF, HUB, LOCAL, SourceEntry
from deltahub.text.suggestions import closest

FILE: Final = "registries.json"
SCHEMA: Final = "registries.v1"
FORMAT_VERSION: Final = 1
HUGGING_FACE: Final = "https://huggingface.co"


@dataclass(frozen=True)
class Settings:
    """All sources of a user.

    Attributes:
        added: the added sources by name, in the order they were added.
        default: the source for pushes and lists when none is named.
        order: names in search order; missing names follow in the usual order.
        disabled: names of disabled sources.
    """

    added: Mapping[str, SourceEntry] = field(default_factory=dict)
    default: str = LOCAL
    order: tuple[str, ...] = ()
    disabled: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all sources in search order; public sources, open to anyone's names, come last."""
        listed = (*self.order, *(name for name in (LOCAL, *self.added, HF) if name not in self.order))
        return tuple(sorted(listed, key=self._is_public))

    def _is_public(self, name: str) -> bool:
        return name == HF or (name in self.added and self.added[name].public)

    @property
    def sources(self) -> tuple[SourceEntry, ...]:
        """All sources in search order, including disabled ones."""
        built_in = {
            LOCAL: SourceEntry(LOCAL, str(home() / "registry")),
            HF: SourceEntry(HF, (os.environ.get("HF_ENDPOINT", "").strip() or HUGGING_FACE).rstrip("/"), kind=HUB),
        }
        return tuple({**self.added, **built_in}[name] for name in self.names)

    @classmethod
    def read(cls) -> Settings:
        """Read the user's settings; without a file, return the built-in sources.

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
    def _from_document(cls, document: Any) -> Settings:
        if (version := document["format_version"]) != FORMAT_VERSION:
            msg = f"it has format {version!r}, and this DeltaHub reads format {FORMAT_VERSION}"
            raise ValueError(msg)
        entries = {entry.name: entry for entry in map(SourceEntry.from_document, document["registries"])}
        order, disabled = tuple(document.get("order", ())), tuple(document.get("disabled", ()))
        default = document["default"]
        for label, names, allowed_names in (
            ("default", (default,), {LOCAL, HF, *entries}),
            ("order", order, {LOCAL, HF, *entries}),
            ("list of what is off", disabled, {LOCAL, HF, *entries}),
        ):
            if unknown_names := [name for name in names if name not in allowed_names]:
                msg = f"its {label} names {unknown_names[0]!r}, which is not among its registries"
                raise LookupError(msg)
        return cls(entries, default, order, disabled)

    def to_document(self) -> dict[str, Any]:
        """Return the settings as JSON, by the schema registries.v1."""
        registries = [entry.to_document() for entry in self.added.values()]
        document: dict[str, Any] = {"format_version": FORMAT_VERSION, "default": self.default, "registries": registries}
        chosen = {"order": list(self.order), "disabled": list(self.disabled)}
        return document | {key: names for key, names in chosen.items() if names}

    # ----- changes -----

    def add(self, entry: SourceEntry) -> Settings:
        """Return settings with one more source, searched last except for the public ones.

        Raises:
            ConfigError: another source has the name.
        """
        if (existing := self.added.get(entry.name, entry)) != entry:
            msg = (
                f"{entry.name!r} is {existing.url} already. Choose another name, or remove that one first: "
                f"deltahub source remove {entry.name}"
            )
            raise ConfigError(msg)
        return replace(self, added={**self.added, entry.name: entry})

    def remove(self, name: str) -> Settings:
        """Return settings without a source; its deltas are kept.

        Raises:
            NotFoundError: the source is unknown.
            ConfigError: the source is built in.
        """
        if name == LOCAL:
            msg = "The local registry cannot be removed. DELTAHUB_HOME moves it, and `deltahub source disable local` turns it off."
            raise ConfigError(msg)
        if name == HF:
            msg = f"{HF} cannot be removed. Turn it off: deltahub source disable {HF}"
            raise ConfigError(msg)
        self.require(name)
        return Settings(
            {key: entry for key, entry in self.added.items() if key != name},
            LOCAL if self.default == name else self.default,
            tuple(key for key in self.order if key != name),
            tuple(key for key in self.disabled if key != name),
        )

    def make_default(self, name: str) -> Settings:
        """Return settings with another default.

        Raises:
            NotFoundError: the source is unknown.
            ConfigError: the source is disabled.
        """
        self.require(name)
        if name in self.disabled:
            raise disabled_source(name)
        return replace(self, default=name)

    def reorder(self, names: tuple[str, ...]) -> Settings:
        """Return settings with another search order; sources not named follow in the usual order.

        Raises:
            NotFoundError: a source is unknown.
            ConfigError: a name is given twice, or a public source would come before others.
        """
        for name in names:
            self.require(name)
        if len(set(names)) != len(names):
            msg = f"{', '.join(names)} names a source twice. Name each once."
            raise ConfigError(msg)
        settings = replace(self, order=names)
        early = next((name for name in names if self._is_public(name)), None)
        if early and settings.names[: len(names)] != names:
            msg = (
                f"{early} is public: anybody can take a free name there, which would then hide the same name in a later "
                f"source. It stays last; to use a delta from there, name the source: {early}:namespace/name"
            )
            raise ConfigError(msg)
        return settings

    def enable(self, name: str) -> Settings:
        """Return settings with a source enabled.

        Raises:
            NotFoundError: the source is unknown.
        """
        self.require(name)
        return replace(self, disabled=tuple(key for key in self.disabled if key != name))

    def disable(self, name: str) -> Settings:
        """Return settings with a source disabled: it is not searched and cannot be named.

        Raises:
            NotFoundError: the source is unknown.
            ConfigError: the source is the default.
        """
        self.require(name)
        if name == self.default:
            msg = f"{name} is where pushes go when no source is named. Choose another first: deltahub registry default NAME"
            raise ConfigError(msg)
        return replace(self, disabled=(*self.enable(name).disabled, name))

    def require(self, name: str) -> None:
        """Check that a source is known.

        Raises:
            NotFoundError: it is unknown; the message suggests the nearest names.
        """
        if name not in self.names:
            raise unknown_source(name, self.names)


def change(how: Callable[[Settings], Settings]) -> Settings:
    """Change the user's settings under a lock: read, change, and write atomically.

    Returns:
        The changed settings.

    Raises:
        ConfigError: the file is damaged.
        StorageError: the file cannot be written.
    """
    folder = config_home()
    with storage_errors("Writing the settings", folder), locked(folder / f"{FILE}.lock"):
        settings = how(Settings.read())
        document = settings.to_document()
        if fault := problem(document, SCHEMA):
            raise _damaged(folder / FILE, fault)
        with staging(folder) as stage:
            write_synced(stage / FILE, f"{json.dumps(document, indent=2)}\n".encode())
            os.replace(stage / FILE, folder / FILE)
            sync_folders([folder])
    return settings


def unknown_source(name: str, known_names: tuple[str, ...]) -> NotFoundError:
    """Build the error for an unknown source."""
    return NotFoundError(
        f"The source {name!r}", (f"known sources {', '.join(known_names)}",), closest(name, known_names)
    )


def disabled_source(name: str) -> ConfigError:
    """Build the error for a disabled source."""
    return ConfigError(f"The source {name!r} is off. Turn it on: deltahub source enable {name}")


def _damaged(path: Path, why: str) -> ConfigError:
    msg = f"{path} is damaged: {why}. Correct it, or delete it and add the sources again: deltahub source add"
    return ConfigError(msg)
