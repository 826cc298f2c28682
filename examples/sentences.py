"""Sentences of four domains, rated by people from -4 to 4.

Hutto & Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text". The sentences have
third-party authors, so they stay in the cache folder and never enter the repository. Those rated between -0.5 and 0.5 are
left out of every split, including the test set: each score here is for clear-cut sentences only.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from packages import fetch

CLEAR_CUT: Final = 0.5
PACKAGE: Final = "vaderSentiment==2.5 --hash=sha256:b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84"
ARCHIVE_IN_SDIST: Final = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
FILES: Final = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}
DOMAINS: Final = tuple(FILES)
SHA256: Final = {
    FILES["movie"]: "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
    FILES["amazon"]: "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
    FILES["tweets"]: "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
    FILES["nyt"]: "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
}


class Example(NamedTuple):
    """One sentence and its label: 1 if people found it positive, 0 if negative."""

    text: str
    label: int


class Splits(NamedTuple):
    """The examples to train on, to choose settings by, and to report."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]

    def first(self, count: int | None) -> Splits:
        """Return the first `count` examples of each split, or all."""
        return Splits(*(split[:count] for split in self))


def load_splits(domain: str = "movie") -> Splits:
    """Read the rated sentences of a domain and split them.

    A sha256, as a number, decides all. Its last decimal digit is the split (0 and 1 test, 2 validation), so no sentence
    changes sides when others are added; its size is the order in the split. The files list most positive sentences
    first, so their first rows would be a lopsided sample. What is hashed is the domain and the lower-case text; where
    sentences come from one document (a product's reviews, an editorial) the document decides the split, so that none is
    on two sides.

    Args:
        domain: one of `DOMAINS`.

    Raises:
        FetchError: the sentences could not be had.
    """
    folder = fetch("sentences", PACKAGE, _unpack, SHA256, from_source=True)
    labels: dict[str, int] = {}
    documents: dict[str, str] = {}
    for line in (folder / FILES[domain]).read_text(encoding="utf-8").strip().split("\n"):
        number, rating, text = line.split("\t")
        if abs(float(rating)) >= CLEAR_CUT and text not in labels:
            labels[text] = int(float(rating) > 0)
            documents[text] = number.split("_")[0] if "_" in number else text.lower()
    splits = Splits([], [], [])
    for text in sorted(labels, key=lambda text: _number(domain, text.lower())):
        bucket = _number(domain, documents[text]) % 10
        split = splits.test if bucket < 2 else splits.validation if bucket == 2 else splits.train
        split.append(Example(text, labels[text]))
    return splits


def majority(examples: Sequence[Example]) -> float:
    """Return the accuracy of the best constant answer: the share of the more frequent label."""
    return max(Counter(example.label for example in examples).values()) / len(examples)


def _number(domain: str, key: str) -> int:
    return int(hashlib.sha256(f"{domain}|{key}".encode()).hexdigest(), 16)


def _unpack(sdist: Path, folder: Path) -> None:
    """Copy out the files that are named here; no path inside an archive decides where anything is written."""
    with tarfile.open(sdist) as outer, tarfile.open(fileobj=outer.extractfile(ARCHIVE_IN_SDIST)) as archive:
        for name in FILES.values():
            ratings = archive.extractfile(f"hutto_ICWSM_2014/{name}")
            assert ratings is not None  # it is a plain file in a package that is pinned by hash
            (folder / name).write_bytes(ratings.read())
