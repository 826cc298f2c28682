"""source list, add, remove, order, enable and disable; and pulls of several, from anywhere."""

from __future__ import annotations

import json

import pytest

from deltahub.settings.environment import config_home
from deltahub.settings.user import FILE
from tests.checkpoints import content_of, save_checkpoint
from tests.sources.web_server import serving


@pytest.fixture
def team(run, tmp_path) -> str:
    """A team's registry in a folder."""
    assert run("source", "add", "team", tmp_path / "team").exit_code == 0
    return "team"


def names(run_json) -> list[str]:
    return [entry["name"] for entry in run_json("source", "list")]


def test_without_settings_there_are_the_local_registry_and_hugging_face(run, run_json):
    listed = run_json("source", "list")
    assert [(entry["name"], entry["kind"], entry["default"], entry["enabled"]) for entry in listed] == [
        ("local", "registry", True, True),
        ("hf", "hub", False, True),
    ]
    assert listed[1]["url"] == "https://huggingface.co"
    assert run("source", "list", "--quiet").stdout == "local\nhf\n"


def test_the_address_of_hugging_face_is_that_of_its_own_client(run_json, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/")
    assert run_json("source", "list")[1]["url"] == "https://hub.example"


def test_sources_are_added_before_the_public_one_and_listed_with_their_settings(run, run_json, tmp_path):
    added = run("source", "add", "team", tmp_path / "team", "--namespaces", "acme,acme-lab")
    assert (
        added.stdout
        == f"team is {tmp_path / 'team'}, which does not exist yet; the first push makes it. Check the path if deltas should be there\n"
    )
    assert "Searched in this order: local, team, hf" in added.stderr
    hub = run_json("source", "add", "hub", "https://hub.acme.org/", "--token-env", "ACME_TOKEN", "--unchecked")
    assert (hub["url"], hub["kind"], hub["token_env"]) == ("https://hub.acme.org", "hub", "ACME_TOKEN")
    assert names(run_json) == ["local", "team", "hub", "hf"]
    assert run_json("source", "list")[1]["namespaces"] == ["acme", "acme-lab"]
    assert run("source", "list").stdout.splitlines()[1] == f"team\tregistry\t{tmp_path / 'team'}\t\tacme acme-lab"
    assert [entry["name"] for entry in run_json("registry", "list")] == ["local", "team"]


def test_a_namespace_is_looked_for_only_where_it_belongs(run, run_json, ckpt, tmp_path):
    run("source", "add", "team", tmp_path / "team", "--namespaces", "acme")
    run("push", ckpt, "acme/ner")
    refused = run("pull", "acme/ner")
    assert refused.exit_code == 3
    assert "Looked in: team (" in refused.stderr
    assert "local" not in refused.stderr
    assert run_json("pull", "local:acme/ner")["reference"] == "local:acme/ner@v1"


def test_the_order_is_chosen_and_kept(run, run_json, ckpt, team, tmp_path):
    run("push", ckpt, "me/x")
    run("push", save_checkpoint(tmp_path / "other", value=2.0), "me/x", "--to", "team")
    assert run_json("pull", "me/x")["reference"] == "local:me/x@v1"
    assert run("source", "order", "team").stdout == "team\nlocal\nhf\n"
    assert names(run_json) == ["team", "local", "hf"]
    assert run_json("pull", "me/x")["reference"] == "team:me/x@v1"
    run("source", "add", "other", tmp_path / "more")
    assert names(run_json) == ["team", "local", "other", "hf"]
    run("source", "remove", "team")
    assert names(run_json) == ["local", "other", "hf"]


def test_a_disabled_source_is_not_used_until_enabled(run, run_json, ckpt, team):
    run("push", ckpt, "me/x", "--to", "team")
    assert run("source", "disable", "team").stdout == "team is off.\n"
    assert run("source", "list").stdout.splitlines()[1].split("\t")[3] == "off"
    assert run("pull", "me/x").exit_code == 3
    for command in (
        ["pull", "team:me/x"],
        ["list", "--source", "team"],
        ["push", ckpt, "--to", "team"],
        ["gc", "--source", "team"],
    ):
        done = run(*command)
        assert (done.exit_code, done.stderr.strip()) == (
            2,
            "Error: The source 'team' is off. Turn it on: deltahub source enable team",
        )
    assert run("source", "enable", "team").stdout == "team is on.\n"
    assert run_json("pull", "me/x")["reference"] == "team:me/x@v1"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["add", "hf", "/x"], 2, "'hf' is a reserved source name"),
        (["add", "hub", "https://me:secret@hub.acme.org"], 2, "without user, secret, '?' or '#'"),
        (["add", "hub", "https://hub.acme.org", "--token-env", "hf_abcDEF.123"], 2, "never the token itself"),
        (["add", "hub", "https://hub.acme.org", "--profile", "x"], 2, "profile is for registries in buckets"),
        (["add", "more", "/x", "--token-env", "T"], 2, "token_env is for hubs"),
        (["add", "more", "/x", "--namespaces", "a/b"], 2, "cannot be a namespace"),
        (["add", "more", "ftp://x"], 2, "expected a folder, s3://bucket/prefix"),
        (["order", "hf", "team"], 2, "hf is public: anybody can take a free name there"),
        (["order", "team", "hf", "local"], 2, "It stays last"),
        (["order", "team", "team"], 2, "names a source twice"),
        (["order", "tema"], 3, "The nearest names are: team."),
        (["disable", "local"], 2, "local is where pushes go when no source is named"),
        (["disable", "tema"], 3, "The nearest names are: team."),
        (["enable", "tema"], 3, "The nearest names are: team."),
        (["remove", "hf"], 2, "hf cannot be removed. Turn it off: deltahub source disable hf"),
        (["remove", "local"], 2, "The local registry cannot be removed"),
    ],
)
def test_an_impossible_request_is_one_clear_error_and_changes_nothing(run, run_json, team, arguments, code, words):
    before = (config_home() / FILE).read_bytes()
    done = run("source", *arguments)
    assert done.exit_code == code, done.output
    assert words in done.stderr
    assert "secret" not in done.stderr.replace("user, secret", "")
    assert "abcDEF" not in done.stderr
    assert (config_home() / FILE).read_bytes() == before


def test_a_second_hub_on_hugging_face_is_public_too(run, run_json, team, tmp_path):
    run("source", "add", "mirror", "https://huggingface.co", "--unchecked")
    run("source", "add", "late", tmp_path / "late")
    assert names(run_json) == ["local", "team", "late", "mirror", "hf"]


def test_a_hub_is_no_registry(run):
    done = run("registry", "add", "hub", "https://hub.acme.org")
    assert done.exit_code == 2
    assert "is a hub, not a registry. Add it with: deltahub source add hub https://hub.acme.org" in done.stderr


def test_settings_that_were_written_before_there_was_an_order_are_read(run_json, tmp_path):
    config_home().mkdir(parents=True)
    document = {"format_version": 1, "default": "team", "registries": [{"name": "team", "url": str(tmp_path / "team")}]}
    (config_home() / FILE).write_text(json.dumps(document))
    assert names(run_json) == ["local", "team", "hf"]


# ----- pulls -----


def test_several_are_pulled_at_once(run, run_json, tmp_path):
    folders = {f"me/d{number}": save_checkpoint(tmp_path / f"d{number}", value=number) for number in range(5)}
    for name, folder in folders.items():
        run("push", folder, name)
    pulled = run_json("pull", *folders)
    assert [entry["reference"] for entry in pulled] == [f"local:{name}@v1" for name in folders]
    assert [entry["asked"] for entry in pulled] == list(folders)
    lines = run("pull", *folders, "--quiet").stdout.splitlines()
    assert lines == [entry["folder"] for entry in pulled]


def test_one_failed_delta_is_reported_and_the_others_are_done(run, ckpt):
    run("push", ckpt, "me/x")
    done = run("pull", "me/x", "me/none", "--json")
    assert done.exit_code == 3
    found, missing = json.loads(done.stdout)
    assert found["reference"] == "local:me/x@v1"
    assert "me/none was not found" in missing["error"]
    assert "Error: The delta me/none was not found." in done.stderr
    assert "1 of 2 pulled." in done.stderr
    assert run("pull", "me/x", "me/none", "--to", "x").exit_code == 2


def test_registries_without_a_name_are_pushed_to_and_pulled_from(run, run_json, ckpt, tmp_path):
    place = tmp_path / "elsewhere"
    assert run("push", ckpt, "me/x", "--to", place).stdout == f"{place}:me/x@v1\n"
    assert run_json("pull", "me/x", "--from", place)["reference"] == f"{place}:me/x@v1"
    assert run_json("pull", f"{place}:me/x")["reference"] == f"{place}:me/x@v1"
    assert run_json("list", "--source", place)[0]["name"] == "me/x"
    assert run("tag", f"{place}:me/x", "lang=en").stdout == f"{place}:me/x@v1: lang=en\n"
    assert run("pull", "me/x").exit_code == 3
    assert run("pull", "local:me/x", "--from", place).exit_code == 2


def test_a_bucket_without_a_name_is_pushed_to_and_pulled_from(run, run_json, ckpt, s3, s3_keys, monkeypatch):
    bucket = s3.bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", bucket.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    place = f"s3://{bucket.name}/{bucket.prefix}"
    assert run("push", ckpt, "me/x", "--to", place).stdout == f"{place}:me/x@v1\n"
    assert run_json("pull", "me/x", "--from", place)["reference"] == f"{place}:me/x@v1"
    assert run_json("pull", f"{place}:me/x@v1")["reference"] == f"{place}:me/x@v1"


def test_a_link_is_pulled_and_its_secrets_are_not_printed(run, run_json, ckpt, tmp_path):
    with serving(tmp_path) as site:
        pulled = run_json("pull", f"{site.url}/ckpt?key=hidden", "--to", tmp_path / "out")
        assert pulled["reference"].startswith(f"{site.url}/ckpt?...#sha256=")
        assert content_of(tmp_path / "out") == content_of(ckpt)
        missing = run("pull", f"{site.url}/none?key=hidden")
    assert missing.exit_code == 3
    assert "hidden" not in missing.output + json.dumps(pulled)
    assert run("pull", "https://me:secret@host:x/").exit_code == 2
    assert "secret" not in run("pull", "https://me:secret@host:x/").output


@pytest.mark.parametrize("command", ["show", "lock", "verify", "log"])
def test_where_a_name_is_wanted_a_link_is_refused_and_not_shown(run, command):
    done = run(command, "https://me:hidden@host/ner")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "A link names no delta of a source, which is wanted here" in done.stderr
    assert "hidden" not in done.stderr


def test_the_progress_bar_grows_with_the_total(monkeypatch):
    import sys

    from deltahub_cli.output import Output
    from rich.progress import Progress

    updates = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(Progress, "update", lambda bar, task, **what: updates.append(what))
    with Output(as_json=False, quiet=False).transfer("Pulling") as (expected, progress):
        expected(10)
        progress(4)
        expected(5)
    assert updates == [{"total": 10}, {"advance": 4}, {"total": 15}]


def test_without_the_network_a_pull_says_what_to_do_beforehand(run, run_json, ckpt, tmp_path, monkeypatch):
    with serving(tmp_path) as site:
        digest = run_json("pull", f"{site.url}/ckpt")["digest"]
    monkeypatch.setenv("DELTAHUB_OFFLINE", "1")
    assert run_json("pull", f"{site.url}/ckpt")["digest"] == digest
    done = run("pull", "me/none")
    assert done.exit_code == 3
    assert "DELTAHUB_OFFLINE is set, so no other source was asked. Pull it beforehand" in done.stderr
