"""A registry on a disk that is mounted read-only: it can be read and checked, and every change is one sentence that changes nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deltahub.stores.local import LocalStore
from tests.checkpoints import content_of
from tests.faults.actions import ACTIONS

PROGRAM = """
import sys
from pathlib import Path
from deltahub.errors import StorageError
from deltahub.registry.registry import Registry
from deltahub.stores.local import LocalStore
from tests.faults.actions import ACTIONS, World, damage_of

registry, world = Registry(LocalStore(Path(sys.argv[1]))), World.build(Path(sys.argv[2]))
assert list(registry.document("acme/ner").versions) == ["v1", "v2"]
assert not damage_of(registry)
for action, act in ACTIONS.items():
    try:
        act(registry, world)
    except StorageError as error:
        assert "Read-only file system" in str(error), error
        assert "You may not write there" in str(error), error
        print(action)
"""
MOUNT = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


def isolated() -> bool:
    """Whether this user may mount things that only one process sees."""
    if not sys.platform.startswith("linux") or not shutil.which("unshare"):
        return False
    return not subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode


@pytest.mark.skipif(not isolated(), reason="this user may not mount")
def test_a_registry_on_a_read_only_disk_is_read_and_refuses_every_change(quick, world):
    root = quick / "registry"
    world.fill(LocalStore(root))
    before = content_of(root)
    (quick / "world").mkdir()
    program = [sys.executable, "-c", PROGRAM, str(root), str(quick / "world")]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNT, "sh", str(root), *program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == list(ACTIONS)
    assert content_of(root) == before
