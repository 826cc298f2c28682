"""The page of a repo, `README.md`: the delta's card with the tags of its pushes, and edits made on the hub.

The card of a new version is merged with the page in a three-way merge, with the card of the last push as the base. Where both
sides changed, the new version's front matter wins, and the page's text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deltahub.checkpoint.card import front_matter
from deltahub.checkpoint.config import known_types
from deltahub.registry.entries import merged_tags

LIBRARY: Final = "deltahub"
_TAGS: Final = "tags"


@dataclass(frozen=True)
class Card:
    """A card in its two parts.

    Attributes:
        facts: the front matter.
        text: the rest.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""

    @classmethod
    def read(cls, data: bytes | None) -> Card:
        """Parse a card; invalid front matter counts as text."""
        from huggingface_hub import RepoCard

        text = (data or b"").decode(errors="replace")
        if not text.lstrip("\ufeff \r\n").startswith("---"):
            return cls({}, text)
        try:
            card: Any = RepoCard(text)
        except Exception:  # noqa: BLE001  (the parser raises errors of its own and others, for any user content)
            return cls({}, text)
        facts = card.data.to_dict()
        if (language := facts.get("language")) is not None:  # YAML 1.1 parses "no", Norwegian, as false
            facts["language"] = (
                [_language(name) for name in language] if isinstance(language, list) else _language(language)
            )
        return cls(facts, card.text)

    def to_bytes(self) -> bytes:
        """Return the card as the content of a file."""
        from huggingface_hub import CardData

        return f"---\n{CardData(**self.facts).to_yaml()}\n---\n{self.text}".encode()


def completed_card(card: bytes | None, config: Mapping[str, Any]) -> Card:
    """Return a checkpoint's card, completed with default front matter.

    Args:
        card: the file; None if the checkpoint has none.
        config: the checkpoint's config with metadata.
    """
    own_card = Card.read(card)
    return Card({**front_matter(config), **own_card.facts}, own_card.text)


def page(card: bytes | None, new: Card, tags: Collection[str], published: bytes | None, previous: Card) -> bytes:
    """Create the page for a new version.

    Args:
        card: the version's own card; None if it has none.
        new: the same, with complete front matter.
        tags: labels and key=value pairs for search.
        published: the current page; None if it does not exist.
        previous: the card of the last push, with complete front matter; empty if unknown.
    """
    current = Card.read(published)
    facts = {
        key: value
        for key in dict.fromkeys((*current.facts, *new.facts))
        if (value := _merged_value(new.facts.get(key), current.facts.get(key), previous.facts.get(key))) is not None
    }
    added_tags = [tag for tag in tags_of(current) if tag not in tags_of(previous)]
    merged = merged_tags([*added_tags, *tags_of(new)], tags)
    ordered = [tag for tag in dict.fromkeys((*tags_of(current), *tags_of(new))) if tag in merged]
    facts[_TAGS] = [*ordered, *(tag for tag in merged if tag not in ordered)]
    text = new.text if current.text.strip() in ("", previous.text.strip()) else current.text
    for data in (card, published):
        if data and Card.read(data) == Card(facts, text):
            return data  # byte for byte as written
    return Card(facts, text).to_bytes()


def tags_of(card: Card) -> list[str]:
    """Return the tags in a card's front matter."""
    value = card.facts.get(_TAGS)
    return [str(item) for item in value] if isinstance(value, list) else [value] if isinstance(value, str) else []


def labels(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags sorted, without those common to every delta of its kind."""
    return tuple(sorted({*tags} - {LIBRARY, *known_types()}))


def _language(value: Any) -> Any:
    return "no" if value is False else value


def _merged_value(new: Any, current: Any, previous: Any) -> Any:
    """Merge one front matter key: take the side that changed since `previous`, and the new version's if both did."""
    return current if new == previous else new
