"""Where a demo plays: a work folder of its own below `.cache`, with a registry and a cache that are not the user's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from packages import CACHE
from rich.console import Console

OUT: Final = Console(highlight=False)
STEPS: Final = (
    int(os.environ["DEMO_STEPS"]) if os.environ.get("DEMO_STEPS") else None
)  # a short run, whose figures say nothing


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
