"""Measurements for the benchmarks: CPU seconds, all variants in turn within one run, medians and their ratios."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

OUT = Console(highlight=False, width=110)


def interleaved(
    variants: Mapping[str, Callable[[], Callable[[], object]]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Measure the median time of each variant in seconds.

    Args:
        variants: name to a function that prepares (not timed) and returns what is timed.
        rounds: how often each runs, in turn with the others; one more round first is not counted.
        clock: CPU time of this process, or wall time.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, prepare in variants.items():
            timed = prepare()
            start = clock()
            timed()
            if number:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def processes(
    commands: Mapping[str, Sequence[str]], rounds: int, environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Measure the median CPU seconds (user and system) of whole commands, in turn; one warm-up round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            child = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                sys.exit(f"{' '.join(command)} exited with {child.returncode}")
            if number:
                times[name].append(usage.ru_utime + usage.ru_stime)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, times: Mapping[str, float], base: str, unit: float = 1e-3, unit_name: str = "ms") -> None:
    """Print times and their ratio to one of them."""
    OUT.print(f"[bold]{title}[/bold]")
    table = Table("", unit_name, f"x {base}", box=None)
    for name, value in times.items():
        table.add_row(name, f"{value / unit:.2f}", f"{value / times[base]:.2f}")
    OUT.print(table, "")


def markdown(
    title: str, times: Mapping[str, float], base: str | None = None, unit: float = 1e-3, name: str = "ms"
) -> str:
    """Format times and their ratio to one of them as a Markdown table."""
    rows = [f"| {title} | {name} |" + (f" x {base} |" if base else ""), "| --- | ---: |" + (" ---: |" if base else "")]
    for what, value in times.items():
        ratio = f" {value / times[base]:.2f} |" if base else ""
        rows.append(f"| {what} | {value / unit:.2f} |{ratio}")
    return "\n".join([*rows, ""])
