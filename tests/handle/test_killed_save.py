"""A process that is killed in the middle of a save leaves a whole delta, or one that is refused."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltahub.checkpoint.checkpoint import describe, is_checkpoint
from deltahub.errors import IntegrityError
from tests.checkpoints import save_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")

KILLED = """
import os, sys
from pathlib import Path
from tests.checkpoints import save_checkpoint
left, replace = int(sys.argv[2]), os.replace
def killed(*names):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    replace(*names)
os.replace = killed
save_checkpoint(Path(sys.argv[1]), value=0.25)
"""


def save_and_be_killed(folder: Path, step: int) -> None:
    """Save, and die at one of the four renames."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(step)], cwd=root, check=False)
    assert done.returncode == -9


@pytest.mark.parametrize("step", [1, 4])
def test_a_first_save_that_is_killed_is_no_delta_and_can_be_repeated(tmp_path, step):
    save_and_be_killed(tmp_path / "delta", step)

    assert not is_checkpoint(tmp_path / "delta")
    assert describe(save_checkpoint(tmp_path / "delta")) == describe(save_checkpoint(tmp_path / "other"))


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_second_save_that_is_killed_is_the_old_delta_or_refused_and_can_be_repeated(tmp_path, step):
    before = describe(save_checkpoint(tmp_path / "delta")).digest
    save_and_be_killed(tmp_path / "delta", step)

    with contextlib.suppress(IntegrityError):
        assert describe(tmp_path / "delta").digest == before
    assert describe(save_checkpoint(tmp_path / "delta")).digest == before
