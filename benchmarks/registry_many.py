"""Many small deltas pushed in one call, beside one by one: within a process, and as commands.

    python benchmarks/registry_many.py [--count 1000] [--commands 20]

Of the commands that push one delta each, only some are run; the rest would take as long.
"""

from __future__ import annotations

import argparse
import compileall
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import OUT, markdown
from safetensors.numpy import save_file

import deltahub
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_record import Fingerprint, Leaf
from deltahub.hub.hub import Hub

PROGRAM = str(Path(sys.executable).parent / "deltahub")


def small_deltas(root: Path, count: int) -> list[Path]:
    """Save many deltas of a few kB."""
    record = Fingerprint(tuple(Leaf(f"layer.{n}.q.weight", "float32", (32, 32), f"{n:032x}") for n in range(24)))
    config = {"format_version": 1, "deltahub_version": "0.1.0", "delta_type": "lora", "modified_modules": ["q"]}
    whole = {**config, "lora_r": 1, "backbone_class": "BertModel", "backbone_hash": record.hash}
    for number in range(count):
        tensors = {f"layer.{n}.q.deltas.lora_A": np.full((1, 32), number, np.float32) for n in range(24)}
        checkpoint.write(root / f"run-{number}", whole, tensors, record, "# A delta\n", save_file)
    return [root / f"run-{number}" for number in range(count)]


def new_hub(home: Path) -> Hub:
    """Open a hub in a folder of its own."""
    os.environ["DELTAHUB_HOME"] = str(home)
    return Hub.open(home / "cache")


def environment(home: Path) -> dict[str, str]:
    """Return environment variables that isolate a command in a folder of its own."""
    return {**os.environ, "DELTAHUB_HOME": str(home), "DELTAHUB_CACHE": str(home / "cache"), "HOME": str(home)}


def within(root: Path, folders: list[Path]) -> str:
    """Measure pushes within a process, as a Markdown table."""
    rows = ["| within a process | s | s of CPU |", "| --- | ---: | ---: |"]
    for what in ("one by one", "in one call"):
        hub = new_hub(root / what)
        start, busy = time.perf_counter(), time.process_time()
        if what == "one by one":
            for folder in folders:
                hub.push(folder, f"acme/{folder.name}")
        else:
            done = hub.push_many(folders, "acme")
            assert not [it for it in done if isinstance(it, Exception)]
        rows.append(f"| {what} | {time.perf_counter() - start:.2f} | {time.process_time() - busy:.2f} |")
    return "\n".join([*rows, ""])


def commands(root: Path, folders: list[Path], some: int) -> dict[str, float]:
    """Measure pushes by commands: the time of each delta."""
    home = root / "commands"
    home.mkdir()

    def push(*arguments: str) -> None:
        command = [PROGRAM, "push", *arguments]
        subprocess.run(command, env=environment(home), check=True, capture_output=True)

    start = time.perf_counter()
    for folder in folders[:some]:
        push(str(folder), f"single/{folder.name}")
    single = (time.perf_counter() - start) / some
    start = time.perf_counter()
    push(*map(str, folders), "--namespace", "acme")
    return {"a command for each": single, "one command for all": (time.perf_counter() - start) / len(folders)}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--commands", type=int, default=20)
    asked = parser.parse_args()
    compileall.compile_dir(Path(deltahub.__file__).parent, quiet=1)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folders = small_deltas(Path(name) / "runs", asked.count)
        OUT.print(f"{asked.count:,} deltas of a few kB\n")
        OUT.print(within(Path(name), folders))
        times = commands(Path(name), folders, asked.commands)
        OUT.print(markdown("as commands, for each delta", times, "one command for all"))


if __name__ == "__main__":
    main()
