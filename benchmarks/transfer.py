"""Pushing and pulling a delta of 5 MB within a process, beside copying, hashing and syncing the same bytes."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measure import interleaved, report
from torch import nn

from deltahub import LoraModel
from deltahub.cache.cache import Cache
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.stores.local import LocalStore

ROUNDS = 25
_WIDTH, _LAYERS, _RANK = 1024, 40, 16  # 40 layers of 2 x 16 x 1024 float32: 5.2 MB


def new_delta(folder: Path) -> None:
    """Save a delta of 5 MB."""
    backbone = nn.ModuleDict({f"layer_{number}": nn.Linear(_WIDTH, _WIDTH, bias=False) for number in range(_LAYERS)})
    delta = LoraModel(backbone, lora_r=_RANK, modified_modules=[r"[r]layer_\d+"])
    for parameter in delta.parameters():
        nn.init.normal_(parameter)
    delta.freeze_module()
    delta.save_finetuned(folder)


def plain_copy(folder: Path, target: Path) -> None:
    """Copy every file, hash it, and sync it and its folder."""
    target.mkdir()
    for path in folder.iterdir():
        data = path.read_bytes()
        hashlib.sha256(data).digest()
        with (target / path.name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        root = Path(name)
        new_delta(root / "ckpt")
        number = itertools.count()

        def push_prepared() -> Callable[[], object]:
            place = root / f"home-{next(number)}"
            hub = Hub({"local": Registry(LocalStore(place))}, Cache(place / "cache"))
            return lambda: hub.push(root / "ckpt", "me/x")

        def pull_prepared() -> Callable[[], object]:
            place = root / f"home-{next(number)}"
            hub = Hub({"local": Registry(LocalStore(place))}, Cache(place / "cache"))
            hub.push(root / "ckpt", "me/x")
            return lambda: hub.pull(Reference.parse("me/x"))

        def copy_prepared() -> Callable[[], object]:
            target = root / f"copy-{next(number)}"
            return lambda: plain_copy(root / "ckpt", target)

        variants = {
            "copy, hash and sync": copy_prepared,
            "deltahub push": push_prepared,
            "deltahub pull": pull_prepared,
        }
        times = interleaved(variants, ROUNDS, time.perf_counter)
        report("A delta of 5.2 MB, wall time", times, "copy, hash and sync")
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
