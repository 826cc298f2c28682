"""Docstrings, comments, messages and manuals are written in plain English."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Phrases that read as riddles; say what the thing is, with the noun that the field has for it.
RIDDLES = {
    'a sentence that begins with "What ..."': r"(?:^|: )What (?!if\b)[^?]*$",
    '"is no ...": say "is not a ..."': r"(?<!here )\b(?:is|are|was) no (?!longer\b|more\b|less\b)\w+",
    '"whoever": name the person or the program': r"\bwho(?:m)?ever\b",
    '"of it": name the thing': r"\b(?:all|half|most|much|none|nothing|some) of it\b",
    '"lies" or "stands" for what is stored': r"\b(?:lies|stands) (?:in (?!for\b)|at\b|under\b|below\b|beside\b|behind\b|before\b|there\b)",
    '"says of"': r"\b(?:says?|said|told) of\b",
}


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def comments(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        yield from (token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT)


def riddles(text: str) -> list[str]:
    sentences = re.split(r"(?<=[.!?]) +|\n\n", text)
    return [
        f"{why}: {sentence.strip()}"
        for sentence in sentences
        for why, pattern in RIDDLES.items()
        if re.search(pattern, sentence.strip().replace("\n", " "))
    ]


SOURCES = sorted(path for folder in ("deltahub", "cli") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES}), ids=lambda folder: folder.name)
def test_docstrings_and_comments_hold_no_riddles(folder):
    found = [
        f"{path.name}: {riddle}"
        for path in folder.glob("*.py")
        for text in (*docstrings(path), *comments(path))
        for riddle in riddles(text)
    ]
    assert found == []
