"""What commands print: results on stdout as tables, lines with tabs or JSON, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

_WIDE: Final = 120  # columns of a terminal that has room for every column of a table


class Output:
    """Where one command prints.

    Args:
        as_json: print results as JSON.
        quiet: print only the result itself, and no hints or progress.
    """

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def result(self, data: Mapping[str, Any], line: str, *hints: str) -> None:
        """Print one result.

        Args:
            data: what `--json` prints.
            line: what is printed otherwise, alone with `--quiet`.
            hints: what more to say, on stderr.
        """
        if self.as_json:
            print_json(data)
            return
        print(line)  # noqa: T201
        if not self.quiet:
            for hint in hints:
                print(hint, file=sys.stderr)  # noqa: T201

    def rows(self, columns: Sequence[str], rows: Sequence[Sequence[str]], narrow: int | None = None) -> None:
        """Print a table; with `--quiet` its first column only, into a pipe the rows alone, with tabs between.

        Args:
            columns: headings; none is shown if all are empty.
            narrow: how many columns a narrow terminal shows; by default all.
        """
        if self.quiet or not sys.stdout.isatty():
            for row in rows:
                print(row[0] if self.quiet else "\t".join(row))  # noqa: T201
            return
        from rich.console import Console
        from rich.table import Table

        console = Console(highlight=False, markup=False)
        shown = narrow if narrow and console.width < _WIDE else len(columns)
        table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
        for number, column in enumerate(columns[:shown]):
            table.add_column(column, overflow="fold", no_wrap=number == 0)  # nothing is cut, names are not broken
        for row in rows:
            table.add_row(*row[:shown])
        console.print(table)

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[int], None] | None]:
        """Show a progress bar on stderr while something moves bytes, if somebody is looking.

        Args:
            what: what is going on.
            total: bytes in all, if known.
        """
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.update(task, advance=count)


def print_json(data: Any) -> None:
    """Print JSON for programs."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))  # noqa: T201


def size_text(count: float) -> str:
    """Bytes for people: ``"1.2 MB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
