"""A hub under load: pulls of a delta of 1 MB a second, and 64 clients that push and pull at once.

python benchmarks/serve.py                      both, 60 seconds each
python benchmarks/serve.py --seconds 10 --workers 2
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from deltahub.server.tokens import Tokens
from deltahub.stores.local import LocalStore

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.server.clients import Client  # found by the line above
from tests.server.killing import Killing
from tests.server.processes import Serving, serving

CLIENTS = 64
PROCESSES = 4  # of clients: one would be slower than the hub
LARGE, SMALL = 1 << 20, 50_000  # bytes of a delta that is pulled, and of one that is pushed
FILE = "adapter_model.safetensors"
Sample = tuple[str, float, str]  # what was done, how many seconds it took, what went wrong


def weights(size: int, seed: int) -> bytes:
    """Create a file of weights of about this many bytes."""
    return save({"w": np.random.default_rng(seed).standard_normal(size // 4, dtype=np.float32)})


def pulling(url: str, secret: str, number: int) -> Callable[[], str]:
    """Return an action that pulls the large delta."""
    client = Client(url, secret)

    def act() -> str:
        client.pull("load/large", FILE)
        return "pull of 1 MB"

    return act


def mixing(url: str, secret: str, number: int) -> Callable[[], str]:
    """Return an action with one push to every three pulls; half of the pushes go to a repository shared by the clients."""
    client, choice, seeds = Client(url, secret), random.Random(number), itertools.count(number * 1_000_000)
    own = f"load/own-{number}"
    client.create(own)

    def act() -> str:
        if choice.random() < 0.25:
            repository = own if choice.random() < 0.5 else f"load/shared-{choice.randrange(8)}"
            client.commit(repository, {FILE: weights(SMALL, next(seeds))})
            return "push of 50 kB"
        client.pull(f"load/shared-{choice.randrange(8)}", FILE)
        return "pull of 50 kB"

    return act


def drive(
    kind: Callable[[str, str, int], Callable[[], str]],
    url: str,
    secret: str,
    numbers: list[int],
    seconds: float,
    out: multiprocessing.Queue[list[Sample]],
) -> None:
    """Run several clients, each in a thread of this process."""
    samples: list[Sample] = []
    actions = [kind(url, secret, number) for number in numbers]
    end = time.perf_counter() + seconds

    def work(act: Callable[[], str]) -> None:
        while (start := time.perf_counter()) < end:
            try:
                what, wrong = act(), ""
            except (AssertionError, OSError) as error:
                what, wrong = "failed", repr(error)
            samples.append((what, time.perf_counter() - start, wrong))

    threads = [threading.Thread(target=work, args=(act,)) for act in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.put(samples)


def load(
    kind: Callable[[str, str, int], Callable[[], str]], hub: Serving, secret: str, clients: int, seconds: float
) -> None:
    """Run clients and print the results."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    numbers = [list(range(first, clients, PROCESSES)) for first in range(min(PROCESSES, clients))]
    drivers = [context.Process(target=drive, args=(kind, hub.url, secret, some, seconds, out)) for some in numbers]
    for driver in drivers:
        driver.start()
    memory: list[float] = []
    watch = threading.Thread(
        target=lambda: [memory.append(resident(hub)) or time.sleep(1) for _ in range(int(seconds) + 2)]
    )
    watch.start()
    samples: list[Sample] = [sample for _ in drivers for sample in out.get()]
    for driver in drivers:
        driver.join()
    watch.join()
    print(f"\n{clients} clients, {seconds:g} s")
    for what in sorted({what for what, _, _ in samples}):
        times = sorted(took for done, took, _ in samples if done == what)
        p99 = times[int(len(times) * 0.99)]
        print(
            f"  {what:16} {len(times):8,}   {len(times) / seconds:7.1f}/s   p50 {statistics.median(times) * 1e3:7.1f} ms   p99 {p99 * 1e3:7.1f} ms"
        )
    for wrong in sorted({wrong for _, _, wrong in samples if wrong})[:5]:
        print(f"  {wrong[:300]}")
    half = len(memory) // 2
    print(
        f"  memory of the hub: {max(memory[:half]):.0f} MB at most in the first half, {max(memory[half:]):.0f} MB in the second"
    )


def resident(hub: Serving) -> float:
    """Measure the memory of the hub's processes in megabytes."""
    pids = [
        hub.process.pid,
        *(int(pid) for pid in Path(f"/proc/{hub.process.pid}/task/{hub.process.pid}/children").read_text().split()),
    ]
    pages = [int(path.read_text().split()[1]) for pid in pids if (path := Path(f"/proc/{pid}/statm")).exists()]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def kill(root: Path, workers: int, kills: int) -> None:
    """Kill the hub at random under load, repeatedly, and check that every acknowledged push is there."""
    killing = Killing(root, lambda number: weights(SMALL, number), clients=CLIENTS, workers=workers)
    start = time.perf_counter()
    for _ in range(kills):
        killing.round(0.0, 3.0)
    took = time.perf_counter() - start
    lost, damage = killing.lost(), killing.damage()
    print(f"\n{CLIENTS} clients that push 50 kB, {kills} kills of all processes of the hub in {took:.0f} s")
    print(
        f"  {len(killing.acknowledged):,} pushes acknowledged, {killing.cut:,} cut off, {len(killing.unexpected)} refused"
    )
    for wrong in sorted(set(killing.unexpected))[:5]:
        print(f"  {wrong[:300]}")
    print(f"  {len(lost)} acknowledged pushes lost, {len(damage)} versions damaged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=["pull", "mix", "kill"])
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.only in (None, "kill"):
            kill(root / "killed", options.workers, options.kills)
        if options.only == "kill":
            return
        _, secret = Tokens(LocalStore(root / "registry")).create("load", "write")
        arguments = (
            "--registry",
            root / "registry",
            "--workers",
            options.workers,
            "--quiet",
            "--audit-log",
            root / "audit",
        )
        with serving(root / "log", *arguments) as hub:
            client = Client(hub.url, secret)
            for name, size in [("large", LARGE), *((f"shared-{number}", SMALL) for number in range(8))]:
                client.create(f"load/{name}")
                client.commit(f"load/{name}", {FILE: weights(size, 0)})
            print(f"{options.workers} processes of the hub, {os.cpu_count()} cores, which the clients share")
            if options.only in (None, "pull"):
                load(pulling, hub, secret, 8, options.seconds)
            if options.only in (None, "mix"):
                load(mixing, hub, secret, CLIENTS, options.seconds)
        for line in (root / "log").read_text().splitlines():
            if '"error"' in line:
                print(line)


if __name__ == "__main__":
    main()
