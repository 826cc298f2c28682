"""Opening the sources that a user has set up, each when it is first needed; none of them is asked anything yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from deltahub.configured import HF, HUB, Configured, place_of
from deltahub.registry.registry import Registry
from deltahub.sources.base import Known, Source
from deltahub.sources.registry import RegistrySource

Opener = Callable[[], Source]


class Sources(Mapping[str, Source]):
    """Sources by name, in the order in which a name without a source is looked up.

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
    """One source.

    Args:
        indexes: the folder in which search indexes are kept.
        kept: the folder in which what interrupted downloads got is kept; None to keep nothing.
        known: tells what need not be asked for again.

    Raises:
        ConfigError: its address is not well formed.
    """
    if entry.kind != HUB:
        return RegistrySource(Registry(entry.store(), entry.name), indexes, known)
    from deltahub.sources.huggingface.source import HuggingFace  # late: only who asks a hub needs it

    if entry.name == HF:  # its address and token are those of Hugging Face's own client
        return HuggingFace(entry.name, known=known, kept=kept)
    return HuggingFace(entry.name, endpoint=entry.url, token_variable=entry.token_variable, known=known, kept=kept)


def registry_at(address: str, indexes: Path, known: Known) -> RegistrySource:
    """A registry that is no source of the user's, by its folder or ``s3://bucket/prefix``; that is its name, too.

    Raises:
        ConfigError: the address is not well formed.
    """
    place = place_of(address)
    return RegistrySource(Registry(Configured(place, place).store(), place), indexes, known)
