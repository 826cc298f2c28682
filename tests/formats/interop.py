"""The table of PEFT's adapter types in docs/interop.md; `python -m tests.formats.interop` writes it anew."""

from __future__ import annotations

from pathlib import Path

from deltahub.formats.peft.adapter_types import REFUSED, TYPES

DOCUMENT = Path(__file__).parents[2] / "docs" / "interop.md"
BEGIN, END = "<!-- types of PEFT -->\n", "<!-- end -->\n"


def table() -> str:
    """Return the table, in Markdown."""
    rows = {kind: f"exact, as {known.becomes}" for kind, known in TYPES.items()}
    rows |= {kind: f"refused: {reason}" for kind, reason in REFUSED.items()}
    lines = [f"| {kind} | {rows[kind]} |" for kind in sorted(rows)]
    return "\n".join(["| type | in DeltaHub |", "|---|---|", *lines]) + "\n"


def parts() -> tuple[str, str, str]:
    """Return the document before, in and after the table."""
    before, _, rest = DOCUMENT.read_text("utf-8").partition(BEGIN)
    inside, _, after = rest.partition(END)
    return before, inside, after


if __name__ == "__main__":
    head, _, tail = parts()
    DOCUMENT.write_text(f"{head}{BEGIN}{table()}{END}{tail}", "utf-8")
