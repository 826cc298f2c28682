"""serve, as far as it is refused; serve token create, list and revoke."""

import pytest

from deltahub.server.tokens import Tokens, id_of
from deltahub.settings.environment import home
from deltahub.stores.local import LocalStore


def local_tokens() -> Tokens:
    return Tokens(LocalStore(home() / "registry"))


def test_the_secret_alone_is_printed_and_works(run):
    made = run(
        "serve", "token", "create", "--name", "ci", "--scope", "write", "--namespace", "acme", "--expires", "30d"
    )
    assert made.exit_code == 0
    secret = made.stdout.strip()
    token = local_tokens().find(id_of(secret))
    assert token.matches(secret)
    assert (token.name, token.scope, token.namespaces) == ("ci", "write", ("acme",))
    assert token.expires is not None
    assert "ci may read and write in acme, until" in made.stderr


def test_a_token_is_of_scope_read_unless_more_is_asked_for(run_json):
    assert run_json("serve", "token", "create", "--name", "ci")["scope"] == "read"


def test_the_list_shows_what_is_refused_and_why_and_no_hash(run, run_json):
    run("serve", "token", "create", "--name", "ci", "--expires", "1d")
    run("serve", "token", "create", "--name", "ada", "--scope", "admin")
    run("serve", "token", "revoke", "ci")
    rows = [line.split("\t") for line in run("serve", "token", "list").stdout.splitlines()]
    assert [(row[0], row[1], row[4]) for row in rows] == [
        ("ada", "admin", ""),
        ("ci", "read", "refused: it was revoked"),
    ]
    for token in (*local_tokens().all(),):
        assert token.sha256 not in run("serve", "token", "list", "--json").stdout
    assert [token["name"] for token in run_json("serve", "token", "list")] == ["ada", "ci"]


def test_a_token_is_revoked_by_its_name_or_its_id(run, run_json):
    made = [run_json("serve", "token", "create", "--name", name) for name in ("ci", "ada")]
    assert run_json("serve", "token", "revoke", "ci")["revoked"] == [made[0]["id"]]
    assert run_json("serve", "token", "revoke", made[1]["id"])["name"] == "ada"
    again = run("serve", "token", "revoke", "ci")
    assert (again.exit_code, "not revoked" in again.stderr) == (3, True)


def test_tokens_lie_in_the_registry_that_is_served(run, tmp_path):
    assert run("serve", "token", "create", "--name", "ci", "--registry", tmp_path / "other").exit_code == 0
    assert run("registry", "add", "team", tmp_path / "team").exit_code == 0
    assert run("serve", "token", "create", "--name", "ci", "--registry", "team").exit_code == 0
    assert [len(Tokens(LocalStore(tmp_path / name)).all()) for name in ("other", "team")] == [1, 1]
    assert local_tokens().all() == []
    assert run("serve", "token", "list").stdout == ""


def test_an_invalid_token_is_one_clear_error(run):
    for arguments in (
        ["--name", "a/b"],
        ["--name", "ci", "--scope", "none"],
        ["--name", "ci", "--expires", "soon"],
        ["--name", "ci", "--scope", "admin", "--namespace", "acme"],
        ["--name", "ci", "--registry", "nobody"],
        ["--name", "ci", "--registry", "hf"],
    ):
        done = run("serve", "token", "create", *arguments)
        assert done.exit_code in (2, 3), arguments
        assert "Traceback" not in done.output
    assert local_tokens().all() == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("--grace", "soon"), ("--max-file", "big"), ("--upload-mode", "ftp"), ("--anonymous", "root")],
)
def test_a_hub_with_an_option_that_means_nothing_says_no_address(run, option, value):
    done = run("serve", "--port", 0, option, value)
    assert (done.exit_code, done.stdout) == (2, "")
    assert option in done.stderr
