"""`make bench` knows every benchmark, and the options of its short form are theirs."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RUN = runpy.run_path(str(BENCHMARKS / "run.py"))


def text(name: str) -> str:
    return (BENCHMARKS / f"{name}.py").read_text("utf-8")


def test_every_benchmark_that_can_be_run_is_a_part():
    found = {path.stem for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")}
    assert sorted([*RUN["PEERS"], *RUN["SHORT"]]) == sorted(found - {"run"})


@pytest.mark.parametrize(("name", "short"), [(name, short) for name, short in RUN["SHORT"].items() if short])
def test_a_short_form_uses_options_that_the_benchmark_has(name, short):
    for option in re.findall(r"--\w+", short):
        assert f'add_argument("{option}"' in text(name)


def test_the_help_of_every_part_comes_from_its_benchmark():
    help_ = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name in (*RUN["PEERS"], *RUN["SHORT"]):
        said = text(name).splitlines()[0].strip('"')
        assert f"  {name} {RUN['SHORT'].get(name, '')}".rstrip() + f"\n      {said}\n" in help_


def test_a_part_that_there_is_not_is_refused_with_those_that_there_are():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", "--part", "nothing"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "invalid choice: 'nothing' (choose from 'attach', 'fingerprint'" in done.stderr
