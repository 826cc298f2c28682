"""Pulling many small deltas from a hub of the Hugging Face protocol, beside snapshot_download from the same hub.

python benchmarks/hf.py                 200 deltas
python benchmarks/hf.py --deltas 1000

Each way starts with an empty cache. All deltas are for one backbone, so one record of it serves them all, as it does in use.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.utils import disable_progress_bars
from measure import OUT, report

from deltahub.cache.cache import Cache
from deltahub.cache.remembered import CachedNames
from deltahub.checkpoint.card import front_matter
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.sources.huggingface import HuggingFace
from deltahub.stores.local import LocalStore

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.checkpoints import DOCUMENT, save_checkpoint  # found by the line above
from tests.s3_proxy import proxied
from tests.server.processes import serving
from tests.sources.huggingface.test_page import card

AT_ONCE = 8  # threads, as `Hub.pull_all` has them
COUNTED = 20  # deltas whose requests are counted through a proxy, which would slow down the rest


def fill(registry: Path, folder: Path, count: int) -> list[str]:
    """Push so many small deltas, and return their names."""
    facts = front_matter(DOCUMENT)
    folders = [
        save_checkpoint(folder / f"delta-{number}", value=number, card=card("# A delta\n", **facts).decode())
        for number in range(count)
    ]
    Hub({"local": Registry(LocalStore(registry))}, Cache(folder / "cache")).push_many(folders, "acme")
    return [f"acme/{it.name}" for it in folders]


def ours(url: str, cache: Path) -> Hub:
    """Create a user of the hub with a cache of their own."""
    place = Cache(cache)
    return Hub({"hf": HuggingFace(endpoint=url, token=False, lookup=CachedNames(place).lookup)}, place)


def one_by_one(url: str, names: Sequence[str], cache: Path) -> None:
    hub = ours(url, cache)
    for name in names:
        hub.pull(Reference.parse(f"hf:{name}"))


def all_at_once(url: str, names: Sequence[str], cache: Path) -> None:
    for done in ours(url, cache).pull_all([Reference.parse(f"hf:{name}") for name in names]):
        if isinstance(done, Exception):
            raise done


def snapshots(url: str, names: Sequence[str], cache: Path) -> None:
    for name in names:
        snapshot_download(name, endpoint=url, cache_dir=cache, token=False)


def snapshots_at_once(url: str, names: Sequence[str], cache: Path) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: snapshot_download(name, endpoint=url, cache_dir=cache, token=False), names))


def spent(process: int) -> float:
    """Return the CPU seconds used by another process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


WAYS: dict[str, Callable[[str, Sequence[str], Path], None]] = {
    "snapshot_download, one by one": snapshots,
    f"snapshot_download, {AT_ONCE} at once": snapshots_at_once,
    "deltahub, one by one": one_by_one,
    "deltahub, pull_all": all_at_once,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deltas", type=int, default=200)
    count = parser.parse_args().deltas
    disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        root = Path(place)
        names = fill(root / "registry", root / "made", count)
        with serving(
            root / "log", "--registry", root / "registry", "--anonymous", "read", "--rate", "0", "--quiet"
        ) as hub:
            with proxied(hub.url) as proxy:
                for number, (way, pull) in enumerate(WAYS.items()):
                    proxy.seen.clear()
                    pull(proxy.url, names[:COUNTED], root / f"counted-{number}")
                    OUT.print(f"{len(proxy.seen) / COUNTED:5.1f} requests for each delta: {way}")
            wall, used = {}, {}
            for number, (way, pull) in enumerate(WAYS.items()):
                before = time.perf_counter(), time.process_time(), spent(hub.process.pid)
                pull(hub.url, names, root / f"cold-{number}")
                after = time.perf_counter(), time.process_time(), spent(hub.process.pid)
                wall[way] = after[0] - before[0]
                used[way] = after[1] - before[1] + after[2] - before[2]
            base = "deltahub, pull_all"
            report(f"{count} deltas into an empty cache, wall time", wall, base, 1, "s")
            report(
                "CPU time of client and hub together, which other work on the machine does not lengthen",
                used,
                base,
                1,
                "s",
            )


if __name__ == "__main__":
    main()
