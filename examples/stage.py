"""Where a demo plays: a work folder of its own below `.cache`, with a registry and a cache that are not the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

from packages import CACHE
from rich.console import Console
from rich.progress import track

T = TypeVar("T")

OUT: Final = Console(highlight=False)
STEPS: Final = (
    int(os.environ["DEMO_STEPS"]) if os.environ.get("DEMO_STEPS") else None
)  # a short run, whose figures say nothing


def steps_of(batches: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield the batches with a progress bar; into a pipe or a log, with a line every ten seconds."""
    if OUT.is_terminal:
        yield from track(batches, what, total=total, console=OUT)
        return
    OUT.print(f"{what}: {total:,} batches")
    shown = monotonic()
    for number, batch in enumerate(batches):
        if monotonic() - shown >= 10:
            shown = monotonic()
            OUT.print(f"{what}: {number:,} of {total:,} batches")
        yield batch


class Stage:
    """The work folder of one demo.

    Args:
        name: of the folder, unless `DEMO_WORK` names another.
    """

    def __init__(self, name: str) -> None:
        self.work = CACHE / os.environ.get("DEMO_WORK", name)

    def clear(self) -> None:
        """Begin anew, with an empty registry and an empty cache."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        os.environ |= {"DELTAHUB_HOME": str(self.work / "home"), "DELTAHUB_CACHE": str(self.work / "cache")}

    def run(self, *arguments: str, elsewhere: bool = False) -> None:
        """Run a command of the same environment and show it.

        Args:
            elsewhere: with a cache that the demo has not used: what it needs is pulled.
        """
        shown = " ".join(Path(argument).name if Path(argument).is_absolute() else argument for argument in arguments)
        OUT.print(f"\n[bold]$ {shown}[/bold]", soft_wrap=True)
        program = shutil.which(arguments[0], path=str(Path(sys.executable).parent)) or arguments[0]
        cache = {"DELTAHUB_CACHE": str(self.work / "empty-cache")} if elsewhere else {}
        subprocess.run([program, *arguments[1:]], check=True, env={**os.environ, **cache}, cwd=self.work)
