"""The benchmarks, one after the other, each in a process of its own: `make bench`.

python benchmarks/run.py                                  those beside peers, as docs/figures.md has them
python benchmarks/run.py --part hf --part registry_line   these, in a short form of less than a minute each
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from pathlib import Path
from typing import Final

PEERS: Final = (
    "attach",
    "fingerprint",
    "startup",
    "transfer",
    "push_adapters",
    "bucket",
    "step",
    "experts",
    "quantised",
    "many",
    "rows",
    "algebra",
)
SHORT: Final = {  # the others, and the arguments of their short form
    "registry_transfer": "",
    "registry_many": "--count 100 --commands 3",
    "registry_scale": "--deltas 2000 --versions 5 --namespaces 10",
    "registry_memory": "--gigabytes 0.25",
    "registry_line": "--deltas 20 --delay 10",
    "catalogue": "--deltas 2000 --kinds sqlite",
    "journal": "--deltas 200 --delay 5",
    "large_namespace": "--deltas 1100",
    "hf": "--deltas 20",
    "serve": "--seconds 3 --kills 2",
    "coverage": "--only bert",
    "gpu": "--device cpu --small",
}


def script(name: str) -> Path:
    """Return the file of a benchmark."""
    return Path(__file__).with_name(f"{name}.py")


def table() -> str:
    """List all benchmarks with their descriptions, for `--help`."""
    lines = ["Without --part:"]
    for name in (*PEERS, *SHORT):
        if name == next(iter(SHORT)):
            lines += [
                "",
                "Others, with the arguments of their short form; without these, python benchmarks/PART.py is the whole:",
            ]
        said = (ast.get_docstring(ast.parse(script(name).read_text("utf-8"))) or "").splitlines()[0]
        lines += [f"  {name} {SHORT.get(name, '')}".rstrip(), f"      {said}"]
    return "\n".join(lines)


def main() -> None:
    """Run the requested benchmarks; the first failure ends the run."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=table(), formatter_class=layout)
    about = "one of those below, in its short form if it has one; may be repeated"
    parser.add_argument("--part", action="append", choices=(*PEERS, *SHORT), metavar="PART", help=about)
    for name in parser.parse_args().part or PEERS:
        short = SHORT.get(name, "")
        if short:
            print(f"A short form: python benchmarks/{name}.py {short}\n", flush=True)
        if code := subprocess.run([sys.executable, script(name), *short.split()], check=False).returncode:
            sys.exit(code)


if __name__ == "__main__":
    main()
