"""What `coverage.py` found, as a summary and as the page docs/coverage.md."""

from __future__ import annotations

import re
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


def refused(result: str) -> bool:
    """Whether a delta was refused with a sentence, before anything was changed, rather than failed."""
    return result.startswith(("NoMatchError", "TargetError", "ConfigError"))


def summary(found: Sequence[Outcome]) -> list[str]:
    """How many models ran, and on how many of them each delta type works."""
    ran = [outcome for outcome in found if not outcome.problem]
    meant = with_attention(found)
    lines = [f"{len(found)} model types, {len(ran)} ran, {len(meant)} of them with attention or feed-forward blocks."]
    for method in dict.fromkeys([*METHODS, *(m for outcome in ran for m in outcome.results)]):
        results = [outcome.results[method] for outcome in meant if method in outcome.results]
        every = [outcome.results[method] for outcome in ran if method in outcome.results]
        if results:
            good, of_all, no = results.count("ok"), every.count("ok"), sum(map(refused, results))
            lines.append(
                f"{method}: {good} of these {len(results)} ({100 * good / len(results):.1f} %), {no} refused, "
                f"{len(results) - good - no} failed; {of_all} of all {len(every)} that ran ({100 * of_all / len(every):.1f} %)"
            )
    return lines


def reason(result: str) -> str:
    """Why a delta was refused or failed, in short."""
    if missing := re.match(r"NoMatchError: No module matches '([^']*)'", result):
        return f"Refused: no module is certain to be `{missing[1].replace('@', '')}`."
    _, _, sentence = result.partition(": ")
    return f"Refused: {sentence}" if refused(result) else f"Fails: {result}"


def write_table(found: Sequence[Outcome], path: Path) -> None:
    """Write the page."""
    methods = list(dict.fromkeys(m for outcome in found for m in outcome.results))
    notes: dict[str, int] = {}

    def cell(text: str) -> str:
        if text in ("ok", ""):
            return text
        return f"[{notes.setdefault(reason(text).replace('|', '/'), len(notes) + 1)}]"

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
        "The map says where the common names come from: written down (explicit), or inferred from the modules: attentions by",
        "their layers for query, key and value, feed-forwards by layers that widen the hidden state and narrow it again, blocks",
        "by the lists that these stand in. What is not certain keeps its real name. A mixture of experts whose matrices are no",
        "modules is `ff.w1` and `ff.w2` as a whole, so that adapters stand where it returns the hidden state. A fused layer has",
        "parts where its layout is known, else it is `attn.qkv` as a whole, which is then what LoRA takes by default. A number",
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
