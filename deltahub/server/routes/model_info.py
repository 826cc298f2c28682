"""Model information of a repository, as the Hugging Face Hub returns it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from deltahub.checkpoint.manifest import FileEntry
from deltahub.reference import DeltaPath
from deltahub.registry.search.index import Listed
from deltahub.server.routes.blobs import Blob
from deltahub.server.routes.trees import moment
from deltahub.text.front_matter import texts

DELTA: Final = "deltahub"  # the key of fields that only DeltaHub reads
CARD_KEYS: Final = (
    "library_name",
    "pipeline_tag",
    "license",
    "base_model",
    "base_model_relation",
    "tags",
    "language",
    "datasets",
)
_TAGGED: Final = {
    "license": "license",
    "base_model": "base_model",
    "datasets": "dataset",
}  # card key to tag prefix
_LIBRARIES: Final = {"peft": "peft", "transformers": "transformers", "opendelta": "opendelta", "files": None}


@dataclass(frozen=True)
class ModelInfo:
    """Information about a repository at one commit.

    Attributes:
        path: its name, ``"namespace/name"``.
        sha: id of the commit.
        created: creation time of the repository, ISO 8601 in UTC.
        modified: time of the commit.
        private: whether the repository is private.
        tags: of the version.
        summary: the document's summary of the version's content.
        card: the known part of the card's front matter.
        gated: how access to its files is given; None for a repository that is not gated.
        listed: its entry in the registry's list; None before the first commit, or outside lists.
    """

    path: str
    sha: str
    created: str
    modified: str
    private: bool
    tags: tuple[str, ...]
    summary: Mapping[str, Any]
    card: Mapping[str, Any]
    gated: str | None = None
    listed: Listed | None = None

    @property
    def author(self) -> str:
        """The namespace."""
        return DeltaPath(self.path).namespace

    @property
    def library(self) -> str | None:
        """The library that the files are for."""
        if isinstance(name := self.card.get("library_name"), str):
            return name
        return _LIBRARIES.get(str(self.summary.get("format")), "deltahub") if self.summary else None

    @property
    def pipeline(self) -> str | None:
        """The task according to the card."""
        task = self.card.get("pipeline_tag")
        return task if isinstance(task, str) else None

    def all_tags(self) -> list[str]:
        """Return everything that a list can be filtered by."""
        card = dict(self.card)
        base = self.summary.get("backbone_checkpoint_name")
        if base and not card.get("base_model"):
            card["base_model"] = base
        prefixed = [f"{prefix}:{value}" for key, prefix in _TAGGED.items() for value in texts(card.get(key))]
        if relation := self._relation(card):
            prefixed += [f"base_model:{relation}:{value}" for value in texts(card.get("base_model"))]
        method = texts(str(self.summary.get("delta_type") or ""))
        tags = [*texts(self.card.get("tags")), *self.tags, *texts(self.library), *texts(self.pipeline), *method]
        return list(dict.fromkeys([*tags, *texts(card.get("language")), *prefixed]))

    def _relation(self, card: Mapping[str, Any]) -> str | None:
        """Return the relation to the base model as in Hub tags; None if the card gives none and it is not a delta."""
        if isinstance(relation := card.get("base_model_relation"), str):
            return relation
        is_adapter = self.summary.get("delta_type") and self.summary.get("format") in (None, "peft", "opendelta")
        return "adapter" if is_adapter or self.library == "peft" else None

    def card_data(self, card: Mapping[str, Any]) -> dict[str, Any]:
        """Return a card's front matter with the version's tags, where Hub clients look for them."""
        card_tags = texts(card.get("tags"))
        added_tags = [tag for tag in self.tags if tag not in card_tags]
        return {**card, "tags": [*card_tags, *added_tags]} if added_tags else dict(card)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON that Hub clients read."""
        return {
            "_id": self.path,
            "id": self.path,
            "modelId": self.path,
            "author": self.author,
            "sha": self.sha,
            "lastModified": moment(self.modified),
            "createdAt": moment(self.created),
            "private": self.private,
            "gated": self.gated or False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": self.all_tags(),
            **({"pipeline_tag": self.pipeline} if self.pipeline else {}),
            **({"library_name": self.library} if self.library else {}),
            **({DELTA: asdict(self.listed)} if self.listed else {}),  # which clients of the Hub ignore
        }


def siblings(files: Iterable[FileEntry]) -> list[dict[str, Any]]:
    """Return the files of a commit by name alone."""
    return [{"rfilename": entry.path} for entry in files]


def sized_siblings(blobs: Iterable[Blob]) -> list[dict[str, Any]]:
    """Return the files of a commit with sizes and digests."""
    return [
        {"rfilename": blob.entry.path, "size": blob.entry.size, "blobId": blob.oid, **blob.lfs("sha256")}
        for blob in blobs
    ]


def expanded(facts: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Keep only the fields requested by ``expand``; all without a request."""
    if not names:
        return dict(facts)
    return {key: value for key, value in facts.items() if key in {*names, "_id", "id", "modelId"}}
