"""The memory of pushing and pulling a delta of some gigabytes, as whole commands.

    python benchmarks/registry_memory.py [--gigabytes 4]

Its file has holes; twice its size is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import OUT
from registry_many import PROGRAM, environment, small_deltas

from deltahub.files.atomic import sha256_file


def big_delta(folder: Path, gigabytes: float) -> Path:
    """Write a delta whose weights are zeros in a sparse file."""
    small_deltas(folder.parent, 1)[0].rename(folder)
    count = int(gigabytes * 2**30) // 4
    header = json.dumps({"layer.0.q.deltas.lora_A": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}})
    header += " " * (-len(header) % 8)
    with (folder / "delta.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 4 * count)
    document = json.loads((folder / "delta_config.json").read_text())
    sha256, size = sha256_file(folder / "delta.safetensors")
    document["files"]["delta.safetensors"] = {"sha256": sha256, "size": size}
    (folder / "delta_config.json").write_text(json.dumps(document))
    return folder


# A process of its own: a child counts the memory of whoever started it until it runs its own program.
_MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def memory(command: list[str], home: Path) -> tuple[float, float]:
    """Measure a command: its time in seconds and its peak memory in MB."""
    measured = [sys.executable, "-c", _MEASURE, *command]
    done = subprocess.run(measured, env=environment(home), check=True, capture_output=True, text=True)
    seconds, kilobytes = map(float, done.stdout.split())
    return seconds, kilobytes * 1024 / 1e6


def table(root: Path, gigabytes: float) -> str:
    """Measure the memory of pushing and pulling a large delta, as a Markdown table."""
    folder = big_delta(root / "big", gigabytes)
    home = root / "big-home"
    rows = [f"| a delta of {gigabytes:g} GB | s | MB of memory |", "| --- | ---: | ---: |"]
    for what in (["push", str(folder), "me/big"], ["pull", "me/big"], ["pull", "me/big"]):
        seconds, held = memory([PROGRAM, *what], home)
        rows.append(f"| deltahub {what[0]} | {seconds:.1f} | {held:.0f} |")
    return "\n".join([*rows, ""])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=4.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        OUT.print(table(Path(name), asked.gigabytes))


if __name__ == "__main__":
    main()
