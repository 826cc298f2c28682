"""The command as a process: closed, full and narrow outputs, bytes that are no text, and a signal to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,  # processes
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals and devices"),
]

COMMAND = [sys.executable, "-c", "from deltahub_cli.main import main; main()"]
TERMINATED = """
import os, signal, sys
from deltahub.stores import local
def copy(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
local.copy_hashed = copy
from deltahub_cli.main import main
main()
"""


def deltahub(*arguments: object, **options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, **{"capture_output": True, **options})


def test_a_full_disk_behind_the_output_is_one_sentence(run, ckpt):
    run("push", ckpt, "me/x")
    with Path("/dev/full").open("wb") as full:
        done = deltahub("list", "--json", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 6
    assert done.stderr == b"Error: No space left on device. Check that place and its disk.\n"


def test_a_closed_output_is_no_failure(run, ckpt):
    run("push", ckpt, "me/x")
    done = deltahub("list", capture_output=False, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, b"")


def test_output_for_a_closed_stderr_does_not_go_to_stdout():
    done = deltahub("show", "me/x", capture_output=False, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (3, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_character_that_the_output_cannot_hold_is_escaped(run, ckpt, encoding):
    assert run("push", ckpt, "me/x", "-m", "na\u00efve \u2713").exit_code == 0
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    shown = deltahub("show", "me/x", "--json", env=environment)
    assert json.loads(shown.stdout.decode(encoding))["message"] == "na\u00efve \u2713"
    assert b"na" in deltahub("show", "me/x", env=environment).stdout


def test_bytes_that_are_no_text_are_refused_nowhere_with_a_traceback(run, ckpt):
    environment = {**os.environb, b"DELTAHUB_AUTHOR": b"\xff", b"PYTHONUTF8": b"1"}
    pushed = subprocess.run([*COMMAND, "push", str(ckpt), "me/x", "-m", b"\xff"], env=environment, check=False)
    assert pushed.returncode == 0
    for arguments in (["list", b"\xff"], ["list", "--author", b"\xff"], ["show", "me/x"], ["log", "me/x", "--json"]):
        assert subprocess.run([*COMMAND, *arguments], env=environment, check=False).returncode == 0


def test_text_of_others_contains_no_terminal_codes_and_stays_on_its_line(run, ckpt, monkeypatch):
    monkeypatch.setenv("DELTAHUB_AUTHOR", "eve\t\x1b[2J\n")
    run("push", ckpt, "me/x", "-m", "one\ntwo")
    (line,) = run("log", "me/x").stdout.splitlines()
    assert line.split("\t")[1].startswith("eve")
    assert "\x1b" not in line
    assert "eve" in run("log", "me/x", "--quiet").stdout
    assert "one two" in run("show", "me/x", "--quiet").stdout


def test_a_push_stopped_by_a_signal_leaves_nothing_behind(ckpt, monkeypatch, tmp_path):
    monkeypatch.setenv("DELTAHUB_HOME", str(tmp_path / "home"))
    done = subprocess.run([sys.executable, "-c", TERMINATED, "push", str(ckpt), "me/x"], check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert list((tmp_path / "home/registry/staging").iterdir()) == []


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_a_home_that_cannot_be_written_gets_no_completion_and_one_sentence(tmp_path):
    (tmp_path / "home").write_text("not a folder")
    named_shell = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # else that of the process that runs the tests
    env = {**os.environ, **named_shell, "HOME": str(tmp_path / "home"), "SHELL": "/bin/bash"}
    done = deltahub("--install-completion", "bash", env=env)
    assert done.returncode == 6
    assert done.stderr.startswith(b"Error: ")
    assert len(done.stderr.splitlines()) == 1
