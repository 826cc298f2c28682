"""Docstrings, comments, messages and manuals are written in plain English."""

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
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


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text("utf-8"))))


def docstrings(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def comments(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        yield from (token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT)


def messages(path: Path) -> Iterator[str]:
    for node in nodes(path):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else "{}" for part in parts]
        if all(isinstance(text, str) for text in texts):
            yield "".join(texts)


def prose(path: Path) -> Iterator[str]:
    """Yield the paragraphs and table cells of a manual, without code."""
    text = re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "X", path.read_text("utf-8"))
    for paragraph in text.split("\n\n"):
        yield from re.split(r" \| |^\| |^- |\n- ", paragraph)


def riddles(text: str) -> list[str]:
    sentences = re.split(r"(?<=[.!?]) +|\n\n", text)
    return [
        f"{why}: {sentence.strip()}"
        for sentence in sentences
        for why, pattern in RIDDLES.items()
        if re.search(pattern, sentence.strip().replace("\n", " "))
    ]


MANUALS = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "coverage.md")]
SOURCES = sorted(path for folder in ("deltahub", "cli") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES}), ids=lambda folder: folder.name)
def test_docstrings_comments_and_messages_hold_no_riddles(folder):
    found = [
        f"{path.name}: {riddle}"
        for path in folder.glob("*.py")
        for text in {*docstrings(path), *comments(path), *messages(path)}
        for riddle in riddles(text)
    ]
    assert found == []


@pytest.mark.parametrize("page", MANUALS, ids=lambda page: page.name)
def test_manuals_hold_no_riddles(page):
    assert [riddle for text in prose(page) for riddle in riddles(text)] == []
