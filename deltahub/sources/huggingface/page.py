"""The page of a repo, `README.md`: the delta's card with the tags of its pushes, and what people changed on the hub.

A new version's card is merged with the page as git merges files: from the card that the last push brought, what one side
changed is taken from that side. Where both did, the facts in the front matter are the new version's, and the text is the people's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deltahub.card import front_matter
from deltahub.config import known_types
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
        """Read a card; front matter that cannot be read counts as text."""
        from huggingface_hub import RepoCard

        text = (data or b"").decode(errors="replace")
        if not text.lstrip("\ufeff \r\n").startswith("---"):
            return cls({}, text)
        try:
            card: Any = RepoCard(text)
        except Exception:  # noqa: BLE001  (of the parser's own kinds, or any: whatever somebody wrote there)
            return cls({}, text)
        facts = card.data.to_dict()
        if (language := facts.get("language")) is not None:  # YAML 1.1 takes Norwegian for false
            facts["language"] = (
                [_language(it) for it in language] if isinstance(language, list) else _language(language)
            )
        return cls(facts, card.text)

    def to_bytes(self) -> bytes:
        """The card as a file."""
        from huggingface_hub import CardData

        return f"---\n{CardData(**self.facts).to_yaml()}\n---\n{self.text}".encode()


def whole(card: bytes | None, config: Mapping[str, Any]) -> Card:
    """A checkpoint's card, with the front matter that it leaves out.

    Args:
        card: the file; None if the checkpoint has none.
        config: the checkpoint's config with metadata.
    """
    own = Card.read(card)
    return Card({**front_matter(config), **own.facts}, own.text)


def page(card: bytes | None, new: Card, tags: Collection[str], theirs: bytes | None, before: Card) -> bytes:
    """Make the page for a new version.

    Args:
        card: the version's own card; None if it has none.
        new: the same, whole.
        tags: labels and key=value pairs that it shall be found by.
        theirs: the page as it is now; None if there is none.
        before: the card that the last push brought, whole; empty if it is not known.
    """
    now = Card.read(theirs)
    facts = {
        key: value
        for key in dict.fromkeys((*now.facts, *new.facts))
        if (value := _chosen(new.facts.get(key), now.facts.get(key), before.facts.get(key))) is not None
    }
    added = [tag for tag in tags_of(now) if tag not in tags_of(before)]
    wanted = merged_tags([*added, *tags_of(new)], tags)
    known = [tag for tag in dict.fromkeys((*tags_of(now), *tags_of(new))) if tag in wanted]
    facts[_TAGS] = [*known, *(tag for tag in wanted if tag not in known)]
    text = new.text if now.text.strip() in ("", before.text.strip()) else now.text
    for data in (card, theirs):
        if data and Card.read(data) == Card(facts, text):
            return data  # as it was written, to the last blank
    return Card(facts, text).to_bytes()


def tags_of(card: Card) -> list[str]:
    """The tags in a card's front matter."""
    value = card.facts.get(_TAGS)
    return [str(item) for item in value] if isinstance(value, list) else [value] if isinstance(value, str) else []


def labels(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags but for those that every delta of its kind has, sorted."""
    return tuple(sorted({*tags} - {LIBRARY, *known_types()}))


def _language(said: Any) -> Any:
    return "no" if said is False else said


def _chosen(new: Any, now: Any, before: Any) -> Any:
    """One fact out of three: what changed since `before`, and the new version's if both did."""
    return now if new == before else new
