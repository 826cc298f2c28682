"""Pushing a new name into a namespace with 100,000 names, beside one with 100.

python benchmarks/large_namespace.py [--deltas 100000]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measure import OUT, markdown
from registry_scale import build, pushes


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deltas", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        root = Path(name)
        few, many = build(root / "few", 100, 1, 1), build(root / "many", asked.deltas, 1, 1)
        (root / "first").mkdir()
        pushes(few, many, root / "first")  # makes the table of names
        (root / "then").mkdir()
        times = pushes(few, many, root / "then")
    OUT.print(markdown("a push of a new name, wall time", times, "push: 100 deltas"))


if __name__ == "__main__":
    main()
