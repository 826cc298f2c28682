"""What `coverage.py` found, as a summary and as the page docs/coverage.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import transformers

if TYPE_CHECKING:
    from coverage import Outcome

METHODS = ("lora", "adapter", "parallel_adapter", "bitfit")


def print_summary(found: Sequence[Outcome]) -> None:
    """Percentages, and each failure of a model that ran."""
    for line in summary(found):
        print(line)


def with_attention(found: Sequence[Outcome]) -> list[Outcome]:
    """Models that ran and have an attention or a feed-forward, where the methods are meant to act."""
    return [outcome for outcome in found if not outcome.problem and {"attn", "ff"} & set(outcome.named)]


def summary(found: Sequence[Outcome]) -> list[str]:
    """How many models ran, and on how many of them each delta type works."""
    ran = [outcome for outcome in found if not outcome.problem]
    meant = with_attention(found)
    lines = [f"{len(found)} model types, {len(ran)} ran, {len(meant)} of them with attention or feed-forward blocks."]
    for method in dict.fromkeys([*METHODS, *(m for outcome in ran for m in outcome.results)]):
        tried = [outcome for outcome in meant if method in outcome.results]
        good = sum(outcome.results[method] == "ok" for outcome in tried)
        every = [outcome for outcome in ran if method in outcome.results]
        of_all = sum(outcome.results[method] == "ok" for outcome in every)
        if tried:
            lines.append(
                f"{method}: {good} of {len(tried)} ({100 * good / len(tried):.1f} %); "
                f"of all that ran {of_all} of {len(every)} ({100 * of_all / len(every):.1f} %)"
            )
    return lines


def write_table(found: Sequence[Outcome], path: Path) -> None:
    """Write the page."""
    methods = list(dict.fromkeys(m for outcome in found for m in outcome.results))
    notes: dict[str, int] = {}

    def cell(text: str) -> str:
        if text in ("ok", ""):
            return text
        return f"[{notes.setdefault(text.replace('|', '/'), len(notes) + 1)}]"

    rows = [
        [
            outcome.model_type,
            outcome.class_name,
            outcome.structure,
            *(cell(outcome.results.get(m, "")) for m in methods),
        ]
        for outcome in found
        if not outcome.problem
    ]
    lines = [
        "# Architectures",
        "",
        f"Tiny random models of transformers {transformers.__version__}, each delta type with its defaults: it is put on, its",
        "parameters are stirred, the output must change, it is saved, loaded on a fresh copy with the same bits, and taken",
        "off, after which the output is the backbone's own to the bit. `python benchmarks/coverage.py` makes this page.",
        "",
        "The map says where the common names come from: written down (explicit) or inferred from the modules. A number",
        "points to the reason below the table.",
        "",
        *(f"- {line}" for line in summary(found)),
        "",
        "| " + " | ".join(["model type", "class", "map", *methods]) + " |",
        "|" + "---|" * (len(methods) + 3),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "## Reasons",
        "",
        *(f"{number}. {text}" for text, number in notes.items()),
        "",
        "## Not tried",
        "",
        "Types that no tiny model was made of, or whose forward pass did not run on inputs made from their config alone:",
        "",
        *(f"- `{outcome.model_type}`: {outcome.problem.replace('|', '/')}" for outcome in found if outcome.problem),
        "",
    ]
    path.write_text("\n".join(lines), "utf-8")
