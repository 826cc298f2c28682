"""Pushing and pulling, beside copying, hashing and syncing the same bytes, Hugging Face's client, MLflow and DVC.

    python benchmarks/registry_transfer.py [--peers FOLDER] [--many 1000] [--big 4]

MLflow and DVC are measured if FOLDER is a virtual environment of their own that has them, apart from this one's:

    python -m venv ../peers && ../peers/bin/pip install mlflow dvc

All times are wall times of one run, the variants in turn. `--big` is the size in GB of the delta whose push and pull are measured
by their memory; its file has holes, and twice its size is written. 0 leaves it out.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measure import OUT, interleaved, markdown
from safetensors.numpy import save_file
from transfer import new_delta, plain_copy

import deltahub
from deltahub import checkpoint
from deltahub.backbone import Fingerprint, Leaf
from deltahub.files import sha256_file
from deltahub.hub import Hub
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


def environment(home: Path) -> dict[str, str]:
    """What keeps a command in a folder of its own."""
    return {**os.environ, "DELTAHUB_HOME": str(home), "DELTAHUB_CACHE": str(home / "cache"), "HOME": str(home)}


def run(command: list[str], home: Path, **more: str) -> None:
    """Run a command that must go well."""
    subprocess.run(command, env=environment(home) | more, cwd=home, check=True, capture_output=True)


def small_deltas(root: Path, count: int) -> list[Path]:
    """Save many deltas of a few kB."""
    record = Fingerprint(tuple(Leaf(f"layer.{n}.q.weight", "float32", (32, 32), f"{n:032x}") for n in range(24)))
    config = {"format_version": 1, "deltahub_version": "0.1.0", "delta_type": "lora", "modified_modules": ["q"]}
    whole = {**config, "lora_r": 1, "backbone_class": "BertModel", "backbone_hash": record.hash}
    for number in range(count):
        tensors = {f"layer.{n}.q.deltas.lora_A": np.full((1, 32), number, np.float32) for n in range(24)}
        checkpoint.write(root / f"run-{number}", whole, tensors, record, "# A delta\n", save_file)
    return [root / f"run-{number}" for number in range(count)]


def big_delta(folder: Path, gigabytes: float) -> Path:
    """A delta whose weights are zeros that take no place on the disk."""
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


@contextlib.contextmanager
def hub_server(home: Path) -> Iterator[str]:
    """`deltahub serve` over an empty registry; its address."""
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
    """Pushing a delta of 5 MB by whole processes, each into a place of its own that was used once before."""
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


def within(root: Path, folder: Path) -> dict[str, float]:
    """The same within a process, and pulls."""
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

    variants: dict[str, Prepared] = {
        "copy, sha256, fsync": copy,
        "push": push,
        "first pull": cold,
        "pull of what is there": lambda: lambda: warm.pull(Reference.parse("me/x")),
    }
    return interleaved(variants, ROUNDS * 3, time.perf_counter)


def new_hub(home: Path) -> Hub:
    """A hub in a folder of its own."""
    os.environ["DELTAHUB_HOME"] = str(home)
    return Hub.open(home / "cache")


def many_at_once(root: Path, count: int) -> dict[str, float]:
    """Many small deltas in one call, and one by one."""
    folders = small_deltas(root / "runs", count)
    times = {}
    hub = new_hub(root / "one-by-one")
    start = time.perf_counter()
    for folder in folders:
        hub.push(folder, f"acme/{folder.name}")
    times["one by one"] = time.perf_counter() - start
    hub = new_hub(root / "at-once")
    start = time.perf_counter()
    done = hub.push_many(folders, "acme")
    times["in one call"] = time.perf_counter() - start
    assert not [it for it in done if isinstance(it, Exception)]
    return times


# A process of its own: a child counts the memory of whoever started it until it runs its own program.
_MEASURE = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def memory(command: list[str], home: Path) -> tuple[float, float]:
    """The seconds that a command takes and the most memory it held, in MB."""
    measured = [sys.executable, "-c", _MEASURE, *command]
    done = subprocess.run(measured, env=environment(home), check=True, capture_output=True, text=True)
    seconds, kilobytes = map(float, done.stdout.split())
    return seconds, kilobytes * 1024 / 1e6


def big(root: Path, gigabytes: float) -> str:
    """The memory of pushing and pulling a big delta, as a Markdown table."""
    folder = big_delta(root / "big", gigabytes)
    home = root / "big-home"
    rows = [f"| a delta of {gigabytes:g} GB | s | MB of memory |", "| --- | ---: | ---: |"]
    for what in (["push", str(folder), "me/big"], ["pull", "me/big"], ["pull", "me/big"]):
        seconds, held = memory([str(BIN / "deltahub"), *what], home)
        rows.append(f"| deltahub {what[0]} | {seconds:.1f} | {held:.0f} |")
    return "\n".join([*rows, ""])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--big", type=float, default=4.0)
    asked = parser.parse_args()
    compileall.compile_dir(Path(deltahub.__file__).parent, quiet=1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        root = Path(name)
        new_delta(root / "ckpt")
        times = within(root, root / "ckpt")
        OUT.print(markdown("5.2 MB within a process", times, "copy, sha256, fsync"))
        with hub_server(root) as server:
            variants = pushes(root, root / "ckpt", asked.peers, server)
            times = interleaved(variants, ROUNDS, time.perf_counter)
        OUT.print(markdown("5.2 MB, whole processes", times, "deltahub push"))
        OUT.print(markdown(f"{asked.many:,} deltas of a few kB", many_at_once(root, asked.many), "in one call"))
        if asked.big:
            OUT.print(big(root, asked.big))


if __name__ == "__main__":
    main()
