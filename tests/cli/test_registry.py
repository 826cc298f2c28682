"""registry add, list, remove and default, and every command on a registry that is not the local one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from deltahub.settings.environment import config_home
from deltahub.settings.user import FILE
from tests.checkpoints import content_of, save_checkpoint
from tests.s3_proxy import Exchange
from tests.s3_servers import ADMIN, READER

pytestmark = pytest.mark.slow  # S3 servers


@pytest.fixture
def team(run, tmp_path) -> str:
    """A team's registry in a folder."""
    assert run("registry", "add", "team", tmp_path / "team").exit_code == 0
    return "team"


@pytest.fixture(params=["folder", "s3", "seaweed"])
def source(request, run, tmp_path) -> str:
    """A registry in a folder or a bucket."""
    if request.param == "folder":
        return request.getfixturevalue("team")
    request.getfixturevalue("s3_keys")
    bucket = request.getfixturevalue(request.param).bucket()
    place = f"s3://{bucket.name}/{bucket.prefix}"
    assert run("registry", "add", "team", place, "--endpoint", bucket.endpoint).exit_code == 0
    return "team"


def test_a_registry_is_added_listed_made_the_default_and_forgotten(run, run_json, tmp_path):
    added = run_json("registry", "add", "team", tmp_path / "team")
    assert (added["name"], added["url"], added["deltas"]) == ("team", str(tmp_path / "team"), 0)
    assert run_json("registry", "default", "team") == {"default": "team"}
    listed = run_json("registry", "list")
    assert [(entry["name"], entry["default"]) for entry in listed] == [("local", False), ("team", True)]
    assert run("registry", "list", "--quiet").stdout == "local\nteam\n"
    assert run("registry", "list").stdout.splitlines()[1].split("\t")[:3] == ["team", "default", str(tmp_path / "team")]
    assert run("registry", "default").stdout == "team\n"
    assert run_json("registry", "remove", "team") == {"removed": "team", "default": "local"}
    assert [entry["name"] for entry in run_json("registry", "list")] == ["local"]


def test_adding_tells_what_is_there_and_how_to_push_to_it(run, ckpt, team, tmp_path):
    assert run("push", ckpt, "me/x", "--to", "team").exit_code == 0
    done = run("registry", "add", "again", tmp_path / "team")
    assert done.stdout == f"again is {tmp_path / 'team'}, which holds one delta\n"
    assert "deltahub push ./ckpt --to again" in done.stderr


def test_every_command_works_on_it_and_names_it(run, run_json, ckpt, tmp_path, source):
    pushed = run("push", ckpt, "me/x", "--to", source, "--tags", "sst2")
    assert (pushed.exit_code, pushed.stdout) == (0, "team:me/x@v1\n"), pushed.stderr
    assert "deltahub pull team:me/x" in pushed.stderr
    second = save_checkpoint(tmp_path / "second", value=2.0)
    assert run_json("push", second, "team:me/x", "--alias", "champion")["reference"] == "team:me/x@v2"
    assert run_json("push", second, "team:me/x")["new"] is False

    assert run_json("list", "--source", source)[0]["name"] == "me/x"
    assert run_json("list", "sst2", "--source", source) == []  # of the newest version, v2, that has no such tag
    assert run_json("list") == []
    shown = run_json("show", "me/x@champion")
    assert (shown["source"], shown["version"]) == ("team", "v2")
    assert run("tag", "team:me/x@v1", "task=sst2").stdout == "team:me/x@v1: sst2 task=sst2\n"
    assert run_json("alias", "team:me/x@v1", "champion")["version"] == "v1"
    assert run_json("log", "team:me/x")[0]["action"] == "push"
    assert run("verify", "team:me/x").stdout == "2 checked, all intact.\n"
    assert run("verify", "--source", source).stdout == "2 checked, all intact.\n"

    pulled = run_json("pull", "me/x@champion", "--to", tmp_path / "out")
    assert pulled["reference"] == "team:me/x@v1"
    assert content_of(tmp_path / "out") == content_of(ckpt)


def test_the_local_registry_goes_first_unless_another_is_named(run, run_json, ckpt, team, tmp_path):
    other = save_checkpoint(tmp_path / "other", value=2.0)
    run("push", ckpt, "me/x")
    run("push", other, "me/x", "--to", "team")
    assert run_json("pull", "me/x")["reference"] == "local:me/x@v1"
    assert run_json("pull", "team:me/x")["reference"] == "team:me/x@v1"
    assert run_json("pull", "team:me/x")["digest"] != run_json("pull", "me/x")["digest"]


def test_the_default_is_pushed_to_and_listed(run, run_json, ckpt, team):
    run("registry", "default", "team")
    assert run("push", ckpt, "me/x").stdout == "team:me/x@v1\n"
    assert [entry["name"] for entry in run_json("list")] == ["me/x"]
    assert run_json("list", "--source", "local") == []


def test_a_folder_that_may_only_be_read_serves(run, run_json, ckpt, shared_folder, as_nobody, monkeypatch, tmp_path):
    place, own = shared_folder / "team", shared_folder / "nobody"
    own.mkdir()
    own.chmod(0o777)
    run("registry", "add", "team", place)
    run("push", ckpt, "me/x", "--to", "team")
    for path in (place, *place.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    settings = json.loads((config_home() / FILE).read_bytes())
    as_nobody()
    if os.access(place, os.W_OK, effective_ids=True):
        pytest.skip("permissions do not bind this user")
    for variable in ("HOME", "CACHE"):
        monkeypatch.setenv(f"DELTAHUB_{variable}", str(own / variable))
    config_home().mkdir(parents=True, exist_ok=True)
    (config_home() / FILE).write_text(json.dumps(settings))

    assert run_json("list", "--source", "team")[0]["name"] == "me/x"
    assert run_json("pull", "me/x")["reference"] == "team:me/x@v1"
    assert run("verify", "team:me/x").stdout == "1 checked, all intact.\n"
    refused = run("alias", "team:me/x", "champion")
    assert refused.exit_code == 6
    assert "You may not write there. Ask its owner for the right" in refused.stderr


def test_with_read_only_keys_everything_can_be_read(run, run_json, ckpt, seaweed, s3_keys, monkeypatch):
    bucket = seaweed.bucket()
    run("registry", "add", "team", f"s3://{bucket.name}/{bucket.prefix}", "--endpoint", bucket.endpoint)
    run("push", ckpt, "me/x", "--to", "team")
    from deltahub.stores import probe

    probe._weaknesses.clear()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER[1])
    assert run_json("list", "--source", "team")[0]["name"] == "me/x"
    assert run_json("pull", "me/x")["reference"] == "team:me/x@v1"
    refused = run("push", ckpt, "me/y", "--to", "team")
    assert refused.exit_code == 6
    assert "You may not write there. Ask its owner for the right" in refused.stderr
    assert [entry["name"] for entry in run_json("list", "--source", "team")] == ["me/x"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["push", "{ckpt}", "me/x", "--to", "tema"],
            3,
            "The source 'tema' was not found. Looked in: known sources local, team, hf.",
        ),
        (["pull", "tema:me/x"], 3, "The nearest names are: team."),
        (["registry", "add", "team", "{tmp}/other"], 2, "'team' is {tmp}/team already"),
        (["registry", "add", "local", "/x"], 2, "'local' is a reserved source name"),
        (["registry", "add", "Team", "/x"], 2, "'Team' cannot be a source"),
        (["registry", "add", "cloud", "ftp://x"], 2, "expected a folder, s3://bucket/prefix"),
        (
            ["registry", "add", "cloud", "s3://nowhere/x", "--endpoint", "{s3}"],
            6,
            "The bucket 'nowhere' does not exist there.",
        ),
        (
            ["registry", "add", "cloud", "s3://deltas/x", "--endpoint", "http://127.0.0.1:1"],
            6,
            "The server cannot be reached.",
        ),
        (["registry", "add", "cloud", "s3://deltas/x", "--profile", "none"], 2, "There is no profile 'none'"),
        (["registry", "add", "cloud", "{ckpt}/README.md"], 6, "is a file; expected the folder of a registry"),
        (["registry", "remove", "tema"], 3, "The nearest names are: team."),
        (["registry", "default", "tema"], 3, "The nearest names are: team."),
    ],
)
def test_an_impossible_request_is_one_clear_error_and_changes_nothing(
    run, run_json, ckpt, team, tmp_path, s3, s3_keys, arguments, code, words
):
    before = run_json("registry", "list")
    places = {"ckpt": ckpt, "tmp": tmp_path, "s3": s3.url}
    done = run(*(argument.format(**places) for argument in arguments))
    assert done.exit_code == code, done.output
    assert words.format(**places) in done.stderr
    assert "Traceback" not in done.stderr
    assert run_json("registry", "list") == before


def test_an_unreachable_registry_can_be_added_unchecked(run, run_json):
    done = run("registry", "add", "cloud", "s3://deltas/x", "--endpoint", "http://127.0.0.1:1", "--unchecked")
    assert done.stdout == "cloud is s3://deltas/x at http://127.0.0.1:1\n"
    assert [entry["name"] for entry in run_json("registry", "list")] == ["local", "cloud"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("command", "method"), [("push", "PUT"), ("pull", "GET")])
def test_an_interrupt_is_heard_while_a_server_does_not_answer(run, ckpt, proxy, s3, command, method):
    bucket = s3.bucket(endpoint=proxy.url)
    run("registry", "add", "team", f"s3://{bucket.name}/{bucket.prefix}", "--endpoint", bucket.endpoint)
    run("push", ckpt, "me/x", "--to", "team")
    begun, end = threading.Event(), threading.Event()

    def stall(exchange: Exchange) -> None:
        begun.set()
        end.wait()
        exchange.reset()

    proxy.breaks(stall, words="/objects/", method=method, times=None)
    arguments = [ckpt, "team:me/y"] if command == "push" else ["team:me/x"]
    script = "from deltahub_cli.main import main; main()"
    process = subprocess.Popen([sys.executable, "-c", script, command, *map(str, arguments)], stderr=subprocess.PIPE)
    try:
        assert begun.wait(60)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
        end.set()
    assert (process.returncode, told) == (130, b"Interrupted; nothing was left half done.\n")


def test_no_secret_is_written_down(run, s3_keys, s3):
    bucket = s3.bucket()
    run(
        "registry",
        "add",
        "team",
        f"s3://{bucket.name}/{bucket.prefix}",
        "--endpoint",
        bucket.endpoint,
        "--region",
        "us-east-1",
    )
    text = (config_home() / FILE).read_text("utf-8")
    assert '"region": "us-east-1"' in text
    assert all(secret not in text for secret in ADMIN)
