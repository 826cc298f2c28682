"""A folder of 200 PEFT adapters of 300 kB pushed by one command, beside copying, hashing and syncing the same files."""

from __future__ import annotations

import compileall
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import interleaved, processes, report
from safetensors.numpy import save_file

import deltahub
from deltahub.cache.cache import Cache
from deltahub.hub.hub import Hub
from deltahub.registry.registry import Registry
from deltahub.stores.local import LocalStore

COUNT, ROUNDS = 200, 5
PROGRAM = str(Path(sys.executable).parent / "deltahub")
_LAYERS, _WIDTH, _RANK = 12, 384, 4
_CONFIG = {
    "peft_type": "LORA",
    "base_model_name_or_path": "acme/base",
    "r": _RANK,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
    "peft_version": "0.21.0",
}
_CARD = (
    "---\nbase_model: acme/base\nlibrary_name: peft\nlicense: mit\ntags:\n- lora\n---\n# An adapter\n" + "text " * 800
)


def new_adapters(root: Path) -> list[Path]:
    """Save adapters as PEFT saves them: weights, config and card."""
    random = np.random.default_rng(0)
    sides = {"lora_A": (_RANK, _WIDTH), "lora_B": (_WIDTH, _RANK)}
    names = [
        (f"base_model.model.model.layers.{layer}.self_attn.{module}.{side}.weight", shape)
        for layer in range(_LAYERS)
        for module in ("q_proj", "v_proj")
        for side, shape in sides.items()
    ]
    folders = [root / f"adapter-{number}" for number in range(COUNT)]
    for folder in folders:
        folder.mkdir(parents=True)
        tensors = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in names}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(_CONFIG, indent=2))
        (folder / "README.md").write_text(_CARD)
    return folders


def plain_copy(folders: list[Path], target: Path) -> None:
    """Hash every file, copy it, hash the copy, and sync all."""
    for folder in folders:
        (target / folder.name).mkdir(parents=True)
        for path in folder.iterdir():
            data = path.read_bytes()
            hashlib.sha256(data).digest()
            (target / folder.name / path.name).write_bytes(data)
            hashlib.sha256(data).digest()
    os.sync()


def main() -> None:
    """Print the tables."""
    compileall.compile_dir(Path(deltahub.__file__).parent, quiet=1)
    number = itertools.count()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        root = Path(name)
        folders = new_adapters(root / "adapters")

        def copied() -> Callable[[], object]:
            target = root / f"copy-{next(number)}"
            return lambda: plain_copy(folders, target)

        def pushed() -> Callable[[], object]:
            place = root / f"home-{next(number)}"
            hub = Hub({"local": Registry(LocalStore(place))}, Cache(place / "cache"))
            return lambda: hub.push_many(folders, "acme")

        def command() -> Callable[[], object]:
            home = root / f"home-{next(number)}"
            environment = {**os.environ, "DELTAHUB_HOME": str(home), "DELTAHUB_CACHE": str(home / "cache")}
            line = [PROGRAM, "push", *map(str, folders), "--namespace", "acme", "--quiet"]
            return lambda: subprocess.run(line, env=environment, check=True, capture_output=True)

        variants = {"copy, hash and sync": copied, "deltahub push": pushed, "as a command": command}
        times = interleaved(variants, ROUNDS, time.perf_counter)
        report(f"{COUNT} adapters, wall time", times, "copy, hash and sync", 1, "s")
        again = [PROGRAM, "push", *map(str, folders), "--namespace", "acme", "--quiet"]
        home = {"DELTAHUB_HOME": str(root / "again"), "DELTAHUB_CACHE": str(root / "again" / "cache")}
        report("CPU time of the command", processes({"the same again": again}, ROUNDS, home), "the same again", 1, "s")
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
