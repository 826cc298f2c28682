"""What was coming in when a hub was killed is removed by the next one; what another hub takes in at that moment is not."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from deltahub.server.running import hold, spool, sweep
from tests.server.clients import Client
from tests.server.processes import serving

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no flock")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """A temporary folder of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_a_hub_s_temporary_files_lie_in_a_folder_that_goes_with_it(temporary):
    with spool() as folder:
        assert folder.parent == temporary
        with tempfile.TemporaryDirectory() as inside:
            assert Path(inside).parent == folder
    assert list(temporary.iterdir()) == []
    assert tempfile.gettempdir() == str(temporary)


def test_the_folder_of_a_running_hub_is_kept_and_an_abandoned_one_removed():
    with spool() as folder:
        sweep()
        assert folder.exists()
    (folder / "upload").mkdir(parents=True)
    (folder / "in-use").touch()
    holder = hold(folder)
    sweep()
    assert folder.exists()
    holder.close()
    sweep()
    assert not folder.exists()


def test_folders_of_others_are_left_alone(temporary):
    (temporary / "deltahub-serve-without-a-lock").mkdir()
    (temporary / "deltahub-0123").mkdir()
    sweep()
    assert len(list(temporary.iterdir())) == 2


def wait_until_ready(hub):
    """The hub says where it is before it is there: who asks meanwhile waits."""
    with Client(hub.url, "") as client:
        assert client.ask("GET", "/healthz")[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_hub_s_uploads_are_removed_when_the_next_one_starts(tmp_path, temporary, workers):
    options = ("--registry", tmp_path / "registry", "--quiet")
    with serving(tmp_path / "one", *options, "--workers", workers, "--anonymous", "write") as hub:
        wait_until_ready(hub)
        hub.kill()
    left = list(temporary.iterdir())
    assert len(left) == 1
    with serving(tmp_path / "two", *options) as hub:
        wait_until_ready(hub)
        assert not left[0].exists()
        assert len(list(temporary.iterdir())) == 1
        assert hub.stop() == 0
    assert list(temporary.iterdir()) == []
