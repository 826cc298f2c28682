"""Pushing and pulling, beside copying, hashing and syncing the same bytes, Hugging Face's client, MLflow and DVC.

    python benchmarks/registry_transfer.py [--peers FOLDER]

MLflow and DVC are measured if FOLDER is a virtual environment of their own that has them, apart from this one's:

    python -m venv ../peers && ../peers/bin/pip install mlflow dvc

All times are of one run, the variants in turn: wall times, and within a process also what it uses of a core.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measure import OUT, interleaved, markdown
from registry_many import environment, new_hub
from transfer import new_delta, plain_copy

import deltahub
from deltahub.files.atomic import sha256_file
from deltahub.reference import Reference

BIN = Path(sys.executable).parent
ROUNDS = 5

Prepared = Callable[[], Callable[[], object]]

_MLFLOW = """
import sys, mlflow
folder, store = sys.argv[1:]
mlflow.set_tracking_uri("sqlite:///" + store + "/mlflow.db")
client = mlflow.MlflowClient()
run = client.create_run("0")
client.log_artifacts(run.info.run_id, folder, "delta")
try:
    client.create_registered_model("sst2")
except mlflow.exceptions.MlflowException:
    pass
version = client.create_model_version("sst2", run.info.artifact_uri + "/delta", run.info.run_id)
client.set_registered_model_alias("sst2", "champion", version.version)
"""
_FLOOR = """
import hashlib, os, sys
source, target = sys.argv[1:]
os.mkdir(target)
for name in os.listdir(source):
    data = open(os.path.join(source, name), "rb").read()
    hashlib.sha256(data).hexdigest()
    with open(os.path.join(target, name), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
folder = os.open(target, os.O_RDONLY)
os.fsync(folder)
"""


def run(command: list[str], home: Path, **more: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, env=environment(home) | more, cwd=home, check=True, capture_output=True)


@contextlib.contextmanager
def hub_server(home: Path) -> Iterator[str]:
    """Run `deltahub serve` over an empty registry and return its address."""
    command = [
        str(BIN / "deltahub"),
        "serve",
        "--port",
        "0",
        "--registry",
        str(home / "served"),
        "--anonymous",
        "write",
    ]
    with subprocess.Popen(
        [*command, "--quiet"], env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[-1].rstrip("/")
        finally:
            server.terminate()


def pushes(root: Path, folder: Path, peers: Path | None, server: str) -> dict[str, Prepared]:
    """Measure pushes of a 5 MB delta by whole processes, each into its own place, which was used once before."""
    number = itertools.count()

    def place(name: str, first: Callable[[Path], object] = lambda _: None) -> Path:
        home = root / f"{name}-{next(number)}"
        home.mkdir()
        first(home)
        return home

    def deltahub_push() -> Callable[[], object]:
        home = place("deltahub")
        return lambda: run([str(BIN / "deltahub"), "push", str(folder), "me/x", "--alias", "champion"], home)

    def hf_upload() -> Callable[[], object]:
        home = place("hf")
        command = [str(BIN / "hf"), "upload", f"me/x{next(number)}", str(folder)]
        return lambda: run(command, home, HF_ENDPOINT=server, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1")

    def cp() -> Callable[[], object]:
        home = place("cp")
        return lambda: run(["cp", "-r", str(folder), str(home / "copy")], home)

    def floor() -> Callable[[], object]:
        home = place("floor")
        return lambda: run([sys.executable, "-c", _FLOOR, str(folder), str(home / "copy")], home)

    found: dict[str, Prepared] = {"cp": cp, "python: copy, sha256, fsync": floor, "deltahub push": deltahub_push}
    found["hf upload to deltahub serve"] = hf_upload
    python = peers / "bin" / "python" if peers else None
    if python and installed(python, "mlflow"):
        (root / "mlflow").mkdir()
        run([str(python), "-c", _MLFLOW, str(folder), str(root / "mlflow")], root / "mlflow")  # makes its database
        command = [str(python), "-c", _MLFLOW, str(folder), str(root / "mlflow")]
        found["mlflow: log, version, alias"] = lambda: lambda: run(command, root / "mlflow")
    else:
        OUT.print("MLflow is not installed: see the top of this file.")
    if python and installed(python, "dvc"):
        dvc = str(python.parent / "dvc")

        def repository(home: Path) -> None:
            run(["git", "init", "-q"], home)
            run([dvc, "init", "-q"], home)
            run([dvc, "remote", "add", "-q", "-d", "store", str(home / "remote")], home)
            shutil.copytree(folder, home / "delta")

        def dvc_push() -> Callable[[], object]:
            home = place("dvc", repository)
            return lambda: (run([dvc, "add", "-q", "delta"], home), run([dvc, "push", "-q"], home))

        found["dvc: add, push"] = dvc_push
    else:
        OUT.print("DVC is not installed: see the top of this file.")
    return found


def installed(python: Path, name: str) -> bool:
    """Whether an environment has a package."""
    command = [str(python), "-c", f"import importlib.util as u, sys; sys.exit(u.find_spec({name!r}) is None)"]
    return python.is_file() and subprocess.run(command, check=False).returncode == 0


def within(root: Path, folder: Path) -> str:
    """Measure pushes and pulls within a process, as a Markdown table."""
    number = itertools.count()
    warm = new_hub(root / "warm")
    warm.push(folder, "me/x")
    warm.pull(Reference.parse("me/x"))

    def push() -> Callable[[], object]:
        hub = new_hub(root / f"within-{next(number)}")
        return lambda: hub.push(folder, "me/x")

    def cold() -> Callable[[], object]:
        hub = new_hub(root / f"within-{next(number)}")
        hub.push(folder, "me/x")
        return lambda: hub.pull(Reference.parse("me/x"))

    def copy() -> Callable[[], object]:
        target = root / f"copy-{next(number)}"
        return lambda: plain_copy(folder, target)

    def check() -> Callable[[], object]:
        return lambda: [sha256_file(path) for path in folder.iterdir()]

    variants: dict[str, Prepared] = {
        "copy, sha256, fsync": copy,
        "read, sha256": check,
        "push": push,
        "first pull": cold,
        "pull of what is there": lambda: lambda: warm.pull(Reference.parse("me/x")),
    }
    wall, busy = (interleaved(variants, ROUNDS * 3, clock) for clock in (time.perf_counter, time.process_time))
    rows = [f"| {name} | {wall[name] * 1e3:.1f} | {busy[name] * 1e3:.1f} |" for name in variants]
    return "\n".join(["| 5.2 MB within a process | ms | ms of CPU |", "| --- | ---: | ---: |", *rows, ""])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path)
    asked = parser.parse_args()
    compileall.compile_dir(Path(deltahub.__file__).parent, quiet=1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        root = Path(name)
        new_delta(root / "ckpt")
        OUT.print(within(root, root / "ckpt"))
        with hub_server(root) as server:
            variants = pushes(root, root / "ckpt", asked.peers, server)
            times = interleaved(variants, ROUNDS, time.perf_counter)
        OUT.print(markdown("5.2 MB, whole processes", times, "deltahub push"))


if __name__ == "__main__":
    main()
