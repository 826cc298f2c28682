"""Processes that pull, read, pin and prune in one cache at the same time never see half a delta."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deltahub.cache import maintenance
from deltahub.cache.cache import Cache
from deltahub.checkpoint.checkpoint import describe
from tests.checkpoints import Fetched

pytestmark = pytest.mark.slow  # processes

READER = """
import sys
from pathlib import Path
from deltahub.cache.cache import Cache
from deltahub.checkpoint.checkpoint import describe
from deltahub.cache.cache import read_cached
from tests.checkpoints import Fetched

cache, sources = Cache(Path(sys.argv[1])), [Fetched(Path(folder)) for folder in sys.argv[2:]]
for turn in range(60):
    source = sources[turn % len(sources)]
    found = read_cached(lambda: source.into(cache), describe)
    assert found.digest == source.digest
print(sum(source.fetched for source in sources))
"""
PRUNER = """
import sys
from pathlib import Path
from deltahub.cache.cache import Cache
from deltahub.cache.maintenance import prune

cache, removed = Cache(Path(sys.argv[1])), 0
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    removed += len(prune(cache, older=0))
print(removed)
"""


def start(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_readers_read_whole_deltas_while_others_prune_them(tmp_path, new_checkpoint):
    folders = [new_checkpoint(value=float(number)) for number in range(3)]
    cache, stop = Cache(tmp_path / "cache"), tmp_path / "stop"
    pinned = Fetched(new_checkpoint(value=9.0))
    maintenance.pin(cache, pinned.digest, "acme/pinned", lambda: pinned.into(cache))
    pruners = [start(PRUNER, cache.root, stop) for _ in range(2)]
    for pruner in pruners:
        assert pruner.stdout.readline() == "ready\n"
    readers = [start(READER, cache.root, *folders) for _ in range(3)]
    read = [reader.communicate() for reader in readers]
    stop.touch()
    pruned = [pruner.communicate() for pruner in pruners]

    assert [(reader.returncode, errors) for reader, (_, errors) in zip(readers, read, strict=True)] == [(0, "")] * 3
    assert [(pruner.returncode, errors) for pruner, (_, errors) in zip(pruners, pruned, strict=True)] == [(0, "")] * 2
    files = len(pinned.manifest.files)
    assert sum(int(text) for text, _ in read) > 3 * files  # they did prune under the readers
    assert sum(int(text) for text, _ in pruned) > 3
    assert cache.damage(pinned.digest) is None
    assert describe(pinned.into(cache)).digest == pinned.digest
    assert pinned.fetched == files
    assert list((cache.root / "staging").iterdir()) == []
