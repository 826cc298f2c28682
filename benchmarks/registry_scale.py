"""A registry of 100,000 deltas with 1,000,000 versions: search, list, --fits and push, beside one of 100 deltas.

    python benchmarks/registry_scale.py [--deltas 100000] [--versions 10] [--namespaces 100] [--keep FOLDER]

The documents are written as pushes write them, without the objects of the versions, which no search reads; the records of the
backbones are real ones. With --keep, what was built is kept and used again. It needs about 1 GB of disk and two minutes.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from measure import OUT, interleaved, markdown
from safetensors.numpy import save_file

import deltahub
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_fit import backbone_tensors
from deltahub.checkpoint.backbone_record import Fingerprint, Leaf
from deltahub.reference import Digest, Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, Version, merged_tags
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.facets import facets
from deltahub.registry.search.index import Index
from deltahub.stores.local import LocalStore

BACKBONES = 40
LAYERS = 24  # tensors of a backbone: 4 of each layer, and the embeddings
TASKS = ("sst2", "mnli", "qqp", "ner", "squad", "cola", "rte", "boolq")
METHODS = ("lora", "adapter", "bitfit", "prefix", "compacter")
ROUNDS = 9


def leaves(number: int) -> tuple[Leaf, ...]:
    """Return the tensors of one backbone: every other one is as wide as the backbone of the query."""
    width = 64 if number % 2 else 32
    names = [f"layer.{layer}.{part}.weight" for layer in range(LAYERS) for part in ("q", "k", "v", "o")]
    found = [Leaf(name, "float32", (width, width), f"{number:032x}") for name in names]
    return (*found, Leaf("embed.weight", "float32", (1000, width), f"{number:032x}"))


def document(name: str, versions: int, record: str, number: int) -> bytes:
    """Create a reference document with many versions."""
    rng = random.Random(number)
    task, method = rng.choice(TASKS), rng.choice(METHODS)
    summary = {
        "delta_type": method,
        "backbone_class": "BertModel",
        "backbone_hash": f"{number % BACKBONES:032x}",
        "backbone_checkpoint_name": f"acme/bert-{number % BACKBONES}",
        "size": rng.randrange(10**5, 10**8),
        "parameters": rng.randrange(10**4, 10**7),
        "metrics": {"accuracy": rng.random()},
        "backbone_record": record,
    }
    said, log = {}, []
    for version in range(1, versions + 1):
        digest = Digest.of(f"{name}-{version}".encode())
        when = f"20{10 + number % 15}-{1 + version:02}-{1 + number % 28:02}T03:{number % 60:02}:05Z"
        author, tags = f"user{number % 50}", (f"seed={version}", f"task={task}", "best" if number % 9 else "draft")
        message = f"run {number} after {version} epochs"
        said[f"v{version}"] = Version(digest, when, author, message, merged_tags((), tags), summary)
        log.append(Move(when, author, "push", f"v{version}", None, digest))
    return ReferenceDocument(name, said, {"champion": f"v{versions}"}, tuple(log)).to_bytes()


def build(root: Path, deltas: int, versions: int, namespaces: int) -> Registry:
    """Write a registry."""
    registry = Registry(LocalStore(root))
    records = [Fingerprint(leaves(number)).to_bytes() for number in range(BACKBONES)]
    digests = [hashlib.sha256(data).hexdigest() for data in records]
    registry.store.create(dict(zip(digests, records, strict=True)))
    for number in range(deltas):
        name = f"team{number % namespaces}/{random.Random(number).choice(TASKS)}-{number}"
        path = root / "refs" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document(name, versions, digests[number % BACKBONES], number))
    return registry


def small_delta(folder: Path, value: float) -> Path:
    """Save a delta of a few kB."""
    names = [f"layer.{layer}.q.deltas.lora_{half}" for layer in range(LAYERS) for half in "AB"]
    tensors = {name: np.full((1, 32), value, np.float32) for name in names}
    config = {"format_version": 1, "deltahub_version": "0.1.0", "delta_type": "lora", "modified_modules": ["q"]}
    fingerprint = Fingerprint(leaves(0))
    whole = {**config, "lora_r": 1, "backbone_class": "BertModel", "backbone_hash": fingerprint.hash}
    checkpoint.write(folder, whole, tensors, fingerprint, "# A delta\n", save_file)
    return folder


def searches(index: Index, root: Path) -> str:
    """Measure the median times of searches in process, each with a check for changes, as a Markdown table."""
    save_file({leaf.name: np.zeros(leaf.shape, np.float32) for leaf in leaves(0)}, root / "model.safetensors")
    backbone = backbone_tensors(root)
    asked: dict[str, Callable[[], object]] = {
        "search: newest 50": lambda: index.search(Search(limit=50)),
        "search: a word of one in 8 names": lambda: index.search(Search(Query("sst2"), 50)),
        "search: a word of every delta": lambda: index.search(Search(Query("bert"), 50)),
        "search: two letters": lambda: index.search(Search(Query("4k"), 50)),
        "search: one delta's name": lambda: index.search(Search(Query("sst2-77"), 50)),
        "search: no hit": lambda: index.search(Search(Query("nowhere"), 50)),
        "search: a tag of one in 8": lambda: index.search(Search(Query(tags=("task=sst2",)), 50)),
        "search: a tag and a word": lambda: index.search(Search(Query("mnli", tags=("best",)), 50)),
        "search: a metric, sorted by it": lambda: index.search(Search(Query(sort="accuracy"), 50)),
        "facets of all": lambda: facets(index, Query()),
        "facets of a tag": lambda: facets(index, Query(tags=("task=sst2",))),
        f"fits: half of {BACKBONES} backbones": lambda: index.search(Search(limit=50, backbone=backbone)),
        "fits: all with their reasons": lambda: index.search(Search(Query(near=True), 50, backbone=backbone)),
    }
    variants = {name: (lambda call=call: call) for name, call in asked.items()}
    wall, busy = (interleaved(variants, ROUNDS, clock) for clock in (time.perf_counter, time.process_time))
    rows = [f"| {name} | {wall[name] * 1e3:.1f} | {busy[name] * 1e3:.1f} |" for name in asked]
    return "\n".join(["| in process | ms | ms of CPU |", "| --- | ---: | ---: |", *rows, ""])


def run(command: list[str], environment: dict[str, str]) -> None:
    """Run a command and discard its output."""
    subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)


def commands(home: Path, folder: Path) -> dict[str, float]:
    """Measure the median wall time of whole processes."""
    program = str(Path(sys.executable).parent / "deltahub")
    environment = {"DELTAHUB_HOME": str(home), "DELTAHUB_CACHE": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
    asked = {
        "deltahub --version": [program, "--version"],
        "deltahub list --tag task=sst2": [program, "list", "--quiet", "--tag", "task=sst2", "--limit", "50"],
        "deltahub list --fits": [program, "list", "--quiet", "--fits", str(folder), "--limit", "50"],
    }
    run(asked["deltahub list --tag task=sst2"], environment)
    return interleaved(
        {name: (lambda command=command: lambda: run(command, environment)) for name, command in asked.items()},
        ROUNDS,
        time.perf_counter,
    )


def pushes(few: Registry, many: Registry, root: Path) -> dict[str, float]:
    """Measure the median wall time of pushing a new delta into a registry with few or many."""
    folder, number = small_delta(root / "ckpt", 0.5), itertools.count(time.monotonic_ns())
    manifest = checkpoint.describe(folder)

    def prepared(registry: Registry) -> Callable[[], Callable[[], object]]:
        return lambda: (
            lambda: publish(registry, Publication(Reference.parse(f"team0/new-{next(number)}"), manifest, folder))
        )

    return interleaved({"push: 100 deltas": prepared(few), "push: all": prepared(many)}, ROUNDS * 5, time.perf_counter)


@contextlib.contextmanager
def place(kept: Path | None) -> Iterator[Path]:
    """Open a given folder, or a temporary one."""
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
    else:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
            yield Path(name)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deltas", type=int, default=100_000)
    parser.add_argument("--versions", type=int, default=10)
    parser.add_argument("--namespaces", type=int, default=100)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    compileall.compile_dir(Path(deltahub.__file__).parent, quiet=1)
    with place(asked.keep) as home:
        shape = [asked.deltas, asked.versions, asked.namespaces]
        started = time.perf_counter()
        if not (home / "built.json").is_file() or json.loads((home / "built.json").read_text()) != shape:
            build(home / "registry", *shape)
            build(home / "few", 100, asked.versions, 1)
            (home / "built.json").write_text(json.dumps(shape))
            OUT.print(f"built in {time.perf_counter() - started:.1f} s")
        registry = Registry(LocalStore(home / "registry"))
        with tempfile.TemporaryDirectory(dir=home) as name:
            index = Index((asked.keep or Path(name)) / "index.sqlite3", registry)
            started, busy = time.perf_counter(), time.process_time()
            count = index.search(Search(limit=1))[1]
            took, busy = time.perf_counter() - started, time.process_time() - busy
            OUT.print(f"first look at {count:,} deltas: {took:.1f} s, {busy:.1f} s of CPU")
            for wait in (2.1, 2.1):  # until the stamps of the folders say something
                time.sleep(wait)
                index.search(Search(limit=1))
            OUT.print(f"size of the index: {index.path.stat().st_size / 1e6:.0f} MB")
            (Path(name) / "backbone").mkdir()
            found = searches(index, Path(name) / "backbone")
            times = commands(home, Path(name) / "backbone")
            pushed = pushes(Registry(LocalStore(home / "few")), registry, Path(name))
            OUT.print(
                f"\n{count:,} deltas in {asked.namespaces} namespaces, {count * asked.versions:,} versions\n\n{found}"
            )
            OUT.print(markdown("whole processes, wall time", times))
            OUT.print(markdown("a push in process, wall time", pushed, "push: 100 deltas"))


if __name__ == "__main__":
    main()
