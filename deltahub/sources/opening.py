"""Lazy opening of the configured sources; opening one sends no request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from deltahub.registry.registry import Registry
from deltahub.settings.source_entry import HF, HUB, Configured, place_of
from deltahub.sources.base import Known, Source
from deltahub.sources.registry import RegistrySource

Opener = Callable[[], Source]


class Sources(Mapping[str, Source]):
    """Sources by name in lookup order, each opened on first use.

    Args:
        openers: open each source.
    """

    def __init__(self, openers: Mapping[str, Opener]) -> None:
        self._openers: Final = openers
        self._open: dict[str, Source] = {}

    def __getitem__(self, name: str) -> Source:
        if name not in self._open:
            self._open[name] = self._openers[name]()
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._openers)

    def __len__(self) -> int:
        return len(self._openers)


def open_source(entry: Configured, indexes: Path, known: Known, kept: Path | None = None) -> Source:
    """Open a source.

    Args:
        indexes: the folder for search indexes.
        kept: the folder for interrupted downloads; None to discard them.
        known: looks up manifests in the cache.

    Raises:
        ConfigError: its address is malformed.
    """
    if entry.kind != HUB:
        return RegistrySource(Registry(entry.store(), entry.name), indexes, known)
    from deltahub.sources.huggingface.source import HuggingFace  # imported lazily: only hubs need it

    if entry.name == HF:  # address and token come from the Hugging Face client's settings
        return HuggingFace(entry.name, known=known, kept=kept)
    return HuggingFace(entry.name, endpoint=entry.url, token_variable=entry.token_variable, known=known, kept=kept)


def registry_at(address: str, indexes: Path, known: Known) -> RegistrySource:
    """Open a registry that is not a configured source, by folder or ``s3://bucket/prefix``, which is also its name.

    Raises:
        ConfigError: the address is malformed.
    """
    place = place_of(address)
    return RegistrySource(Registry(Configured(place, place).store(), place), indexes, known)
