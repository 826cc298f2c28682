"""Many processes that change one registry at the same time, each of which writes down what it was told.

    python -m tests.faults.soak local --seconds 60
    python -m tests.faults.soak moto --seconds 60
    python -m tests.faults.soak seaweed --seconds 60

Every change is made under an author's name of its own, so that the log of a delta says which changes took place. `checking` compares
that with what the processes were told.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from deltahub.checkpoint import checkpoint
from deltahub.errors import DeltaHubError
from deltahub.reference import Reference
from deltahub.registry.edits import remove, set_alias, set_tags
from deltahub.registry.gc import collect
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.registry.verify import verify
from deltahub.stores.bucket import Bucket
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.local import LocalStore
from tests.checkpoints import save_checkpoint
from tests.faults.checking import check
from tests.s3_servers import ADMIN, new_moto, new_seaweed

NAMES = ("acme/a", "acme/b", "acme/moving")
OTHER = "acme/moved"  # the other name of the last one
ALIASES = ("champion", "prod")
TAGS = ("best", "draft", "lang=de", "lang=en")
WEIGHTS = {
    "push": 6,
    "again": 2,
    "alias": 6,
    "expect": 6,
    "tag": 4,
    "remove": 3,
    "rename": 1,
    "collect": 2,
    "verify": 1,
}


class Worker:
    """One process's part.

    Args:
        registry: what all of them change.
        name: of the worker.
        folder: where its checkpoints lie, and what it was told.
    """

    def __init__(self, registry: Registry, name: str, folder: Path) -> None:
        self.registry, self.name, self.folder = registry, name, folder
        self.chance = random.Random(name)
        self.made = 0
        folder.mkdir()

    def run(self, seconds: float) -> None:
        """Change things for so long."""
        end = time.monotonic() + seconds
        with (self.folder / "told.jsonl").open("w") as log:
            while time.monotonic() < end:
                (action,) = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
                self.made += 1
                author = os.environ["DELTAHUB_AUTHOR"] = f"{self.name}.{self.made}"
                entry: dict[str, Any] = {"action": action, "author": author, "start": time.monotonic()}
                try:
                    entry |= getattr(self, f"_{action}")()
                except DeltaHubError as error:
                    entry |= {"error": type(error).__name__, "text": str(error)}
                log.write(json.dumps(entry | {"end": time.monotonic()}) + "\n")
                log.flush()

    def _some(self) -> tuple[str, str]:
        name = self.chance.choice(NAMES)
        document = self.registry.document(name)
        versions = list(document.versions) or [document.latest]
        return name, self.chance.choice(versions[-4:])

    def _push(self, content: float | None = None) -> dict[str, Any]:
        name = self.chance.choice(NAMES)
        value = content or int(self.name) * 1e6 + self.made
        folder = save_checkpoint(self.folder / f"{self.made}", value=value)
        aliases = self.chance.sample(ALIASES, self.chance.choice((0, 0, 1)))
        manifest = checkpoint.describe(folder)
        published = publish(self.registry, Publication(Reference.parse(name), manifest, folder, aliases=aliases))
        version, new = published.version, published.new
        shutil.rmtree(folder)
        return {"name": name, "version": version, "digest": manifest.digest, "new": new}

    def _again(self) -> dict[str, Any]:
        return self._push(self.chance.choice((-1.0, -2.0, -3.0)))

    def _alias(self) -> dict[str, Any]:
        name, version = self._some()
        alias = self.chance.choice(ALIASES)
        set_alias(self.registry, name, alias, version)
        return {"name": name, "alias": alias, "version": version}

    def _expect(self) -> dict[str, Any]:
        name, version = self._some()
        alias = self.chance.choice(ALIASES)
        expect = self.registry.document(name).aliases.get(alias)
        time.sleep(self.chance.random() / 100)
        set_alias(self.registry, name, alias, version, expect=expect)
        return {"name": name, "alias": alias, "version": version, "expect": expect}

    def _tag(self) -> dict[str, Any]:
        name, version = self._some()
        tag = self.chance.choice(TAGS)
        removed = self.chance.random() < 0.3
        set_tags(self.registry, name, version, [] if removed else [tag], [tag] if removed else [])
        return {"name": name, "version": version, "tag": tag, "removed": removed}

    def _remove(self) -> dict[str, Any]:
        name, version = self._some()
        remove(self.registry, name, version)
        return {"name": name, "version": version}

    def _rename(self) -> dict[str, Any]:
        old, new = self.chance.sample((NAMES[-1], OTHER), 2)
        rename(self.registry, Reference.parse(old), Reference.parse(new))
        return {"name": old, "to": new}

    def _collect(self) -> dict[str, Any]:
        return {"freed": len(collect(self.registry, timedelta()).freed)}

    def _verify(self) -> dict[str, Any]:
        name = self.chance.choice(NAMES)
        return {"name": name, "damage": {place: damage for place, damage in verify(self.registry, [name]) if damage}}


def registry_at(place: Path | Bucket) -> Registry:
    """The registry that all change."""
    return Registry(LocalStore(place) if isinstance(place, Path) else BucketStore(place))


def work(place: Path | Bucket, name: str, folder: Path, seconds: float) -> None:
    """What one process does."""
    logging.disable(logging.WARNING)  # of what was renamed, and of waiting
    Worker(registry_at(place), name, folder / name).run(seconds)


def soak(place: Path | Bucket, folder: Path, seconds: float, processes: int) -> Counter[str]:
    """Run the workers, and check what they were told against what the registry holds.

    Returns:
        How often what happened.
    """
    context = multiprocessing.get_context("forkserver")  # a process that has used a bucket must not be forked
    context.set_forkserver_preload([__name__, "obstore"])
    workers = [context.Process(target=work, args=(place, f"{n}", folder, seconds)) for n in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not any(worker.exitcode for worker in workers), [worker.exitcode for worker in workers]
    entries = [json.loads(line) for path in folder.glob("*/told.jsonl") for line in path.read_text().splitlines()]
    return check(registry_at(place), entries)


@contextlib.contextmanager
def places(kind: str, folder: Path) -> Iterator[Path | Bucket]:
    """Where a registry of one kind can be."""
    if kind == "local":
        yield folder / "registry"
        return
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = ADMIN
    with new_moto(folder) if kind == "moto" else new_seaweed() as server:
        yield server.bucket()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", choices=["local", "moto", "seaweed"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, places(options.store, Path(folder)) as place:
        counts = soak(place, Path(folder), options.seconds, options.processes)
    sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
