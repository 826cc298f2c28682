"""Output of commands: results on stdout as tables, lines with tabs or JSON, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from time import monotonic
from typing import Any, Final, TextIO

from deltahub.text.visible import visible

from .progress import PlainProgress

_Advance = Callable[[int], None]
_Counted = Callable[[int, int], None]
_SHORTEST: Final = 4  # minimum width of a cell in a narrow table
_SHORT: Final = 0.5  # seconds before progress is shown
_FRAME: Final = 0.1  # seconds between two updates of a bar


class Output:
    """The output of a command.

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
            data: the result for `--json`.
            line: the result as text, printed alone with `--quiet`.
            hints: further lines for stderr.
        """
        if self.as_json:
            print_json(data)
            return
        say(line)
        if not self.quiet:
            for hint in hints:
                say(hint, err=True)

    def nothing(self, line: str, *hints: str) -> None:
        """Print on stderr that there is no result."""
        if not self.quiet:
            for text in (line, *hints):
                say(text, err=True)

    def rows(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, key: int | None = 0, wrap: bool = False
    ) -> None:
        """Print a table; into a pipe the rows alone, separated by tabs; with `--quiet` the key column only.

        Args:
            columns: headings; none is shown if all are empty.
            key: the column printed with `--quiet`; None for whole rows.
            wrap: on a narrow terminal break long cells between words, which suits sentences; by default they end in an
                ellipsis, the widest first. The first column is never cut: if it leaves no room, each row is one plain line.
        """
        rows = [[_one_line(cell) for cell in row] for row in rows]
        if self.quiet or not sys.stdout.isatty():
            for row in rows:
                say(row[key] if self.quiet and key is not None else "\t".join(row))
            return
        from rich.console import Console
        from rich.table import Table

        console = Console(highlight=False, markup=False)
        table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
        if wrap or key is None:
            for number, column in enumerate(columns):
                table.add_column(column, overflow="fold", no_wrap=number == 0)
        else:
            widths = _widths(columns, rows, console.width)
            if widths is None:  # the first column leaves no room for the rest
                for row in rows:
                    say("  ".join(row))
                return
            for column, width in zip(columns, widths, strict=True):
                table.add_column(column, width=width, no_wrap=True, overflow="ellipsis")
        for row in rows:
            table.add_row(*row)
        console.print(table)

    @contextmanager
    def progress(self, operation: str, total: int | None) -> Iterator[_Advance | None]:
        """Show on stderr how many bytes have been transferred: a bar on a terminal, otherwise an occasional line.

        Args:
            operation: the operation.
            total: total bytes, if known.
        """
        with self.transfer(operation, total) as (_, progress):
            yield progress

    @contextmanager
    def transfer(
        self, operation: str, total: int | None = None
    ) -> Iterator[tuple[_Advance, _Advance] | tuple[None, None]]:
        """Show one progress for all transfers, whose total may grow on the way.

        Returns:
            Two functions, for additional expected bytes and for transferred bytes; both are thread-safe.
        """
        if self.quiet or self.as_json:
            yield None, None
            return
        if not sys.stderr.isatty():
            lines = PlainProgress(operation, size_text, total)
            yield lines.expect, lines.advance
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(operation, total=total)
            expected_bytes, lock = 0, Lock()

            def expected(count: int) -> None:
                nonlocal expected_bytes
                with lock:
                    expected_bytes += count
                    bar.update(task, total=expected_bytes)

            yield expected, lambda count: bar.update(task, advance=count)

    @contextmanager
    def counting(self, operation: str, things: str) -> Iterator[_Counted | None]:
        """Show on stderr how many items are done, unless it is quick: a bar on a terminal, otherwise an occasional line.

        Args:
            operation: the operation.
            things: the plural of the counted items.

        Returns:
            A function to call with the number of items done and the total.
        """
        if self.quiet or self.as_json:
            yield None
            return
        if not sys.stderr.isatty():
            yield PlainProgress(operation, "{:,}".format, unit=f" {things}").reach
            return
        started, shown = monotonic(), 0.0
        with ExitStack() as showing:
            show: _Counted | None = None

            def counted(count: int, total: int) -> None:
                nonlocal show, shown
                now = monotonic()
                if now - started < _SHORT or now - shown < _FRAME:
                    return
                shown, show = now, show or _bar(operation, things, showing)
                show(count, total)

            yield counted


def _bar(operation: str, things: str, showing: ExitStack) -> _Counted:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    counts = TextColumn(f"{{task.completed:,}} of {{task.total:,}} {things}")
    bar = Progress(TextColumn("{task.description}"), BarColumn(), counts, console=Console(stderr=True), transient=True)
    task = showing.enter_context(bar).add_task(operation, total=0)
    return lambda count, total: bar.update(task, completed=count, total=total)


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], available: int) -> list[int] | None:
    """Return the width of each column for lines of `available` cells; None if the first column leaves no room."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, (name, *(row[at] for row in rows)))) for at, name in enumerate(columns)]
    excess = sum(widths) + 2 * (len(widths) - 1) - available
    while excess > 0:
        widest = max(range(1, len(widths)), key=widths.__getitem__, default=0)
        if widths[widest] <= _SHORTEST:
            return None
        widths[widest] -= 1
        excess -= 1
    return widths


class VisibleStream:
    """A text stream that escapes control characters from every writer, including logging, warnings and other packages.

    Rich bypasses it, since it colours text and moves the cursor: cells and messages are escaped before rich gets them.

    Args:
        stream: the underlying stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.rich_proxied_file = stream  # rich looks here for the underlying stream

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # bytes would bypass the escaping
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; keep a leading carriage return, which a progress bar needs."""
        start = "\r" if text.startswith("\r") else ""
        self._stream.write(start + visible(text.removeprefix(start)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)


def say(text: str, *, err: bool = False) -> None:
    """Print a line on stdout or stderr, with control characters escaped: it may contain untrusted text."""
    print(visible(text), file=sys.stderr if err else sys.stdout)


def print_json(data: Any) -> None:
    """Print JSON for programs, with characters escaped that stdout cannot encode."""
    text = json.dumps(data, indent=2, ensure_ascii=False, default=str)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(data, indent=2, default=str)
    say(text)


def _one_line(cell: str) -> str:
    """Replace line breaks, tabs and control characters in a cell with spaces: its text is untrusted."""
    return "".join(char if char.isprintable() else " " for char in cell)


def size_text(count: float) -> str:
    """Format bytes for display: ``"1.2 MB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
