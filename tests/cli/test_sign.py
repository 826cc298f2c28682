"""sign, and signatures in push, pull, verify and registry, as a user types them."""

import json

import pytest
from deltahub_cli.errors import DAMAGED

from deltahub.registry.signatures import PREFIX
from deltahub.settings.environment import config_home, home
from tests.checkpoints import save_checkpoint
from tests.foreign import peft
from tests.keys import new_key, public_of


@pytest.fixture
def key(tmp_path):
    return new_key(tmp_path / "release.pem")


@pytest.fixture
def other(tmp_path):
    return new_key(tmp_path / "other.pem")


@pytest.fixture
def team(run, tmp_path, key):
    """A registry that asks for a signature by `key`."""
    added = run("registry", "add", "team", tmp_path / "team", "--require-signature", "--trust", public_of(key))
    assert added.exit_code == 0
    return tmp_path / "team"


def test_a_delta_signed_at_push_is_pulled_where_signatures_are_required(run, run_json, team, key, ckpt):
    pushed = run_json("push", ckpt, "team:me/x", "--sign", key)

    assert len(pushed["signed_by"]) == 64
    assert run("pull", "team:me/x").exit_code == 0


def test_an_unsigned_delta_is_refused_until_it_is_signed(run, run_json, team, key, ckpt):
    run("push", ckpt, "team:me/x")
    refused = run("pull", "me/x")
    assert (refused.exit_code, refused.stdout) == (DAMAGED, "")
    assert "team:me/x@v1 is refused: expected a signature by" in refused.stderr
    assert "deltahub sign REF --key KEY" in refused.stderr

    signed = run("sign", "team:me/x@v1", "--key", key)
    assert (signed.exit_code, signed.stdout) == (0, "team:me/x@v1\n")
    assert run("pull", "me/x").exit_code == 0
    assert run_json("sign", "me/x", "--key", key)["reference"] == "team:me/x@v1"


def test_a_delta_of_another_library_is_signed_as_it_is(run, run_json, team, key, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    peft(folder)
    assert len(run_json("push", folder, "team:me/x", "--sign", key)["signed_by"]) == 64
    assert run("pull", "team:me/x").exit_code == 0

    (folder / "README.md").write_text("# Another card")
    run("push", folder, "team:me/x")
    assert run("pull", "team:me/x").exit_code == DAMAGED
    assert run("sign", "team:me/x", "--key", key).exit_code == 0
    assert run("pull", "team:me/x").exit_code == 0


@pytest.mark.parametrize("signed", [[], ["--sign", "other.pem"]])
def test_a_push_that_no_trusted_key_signed_says_what_is_missing(
    run, team, key, other, ckpt, tmp_path, signed, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = "team gives out only what a trusted key signed. If none did yet: deltahub sign team:me/x@v1 --key KEY"
    assert said in run("push", ckpt, "team:me/x", *signed).stderr
    many = run("push", ckpt, "--to", "team", "--namespace", "me", *signed)
    assert many.stderr.splitlines() == [said.replace("team:me/x@v1", "REF")]

    assert said not in run("push", ckpt, "team:me/x", "--sign", key).stderr
    assert said not in run("push", ckpt, "me/x", *signed).stderr


def test_the_address_of_a_registry_is_no_way_around_its_policy(run, team, ckpt):
    run("push", ckpt, "team:me/x")

    assert run("pull", "me/x", "--from", team).exit_code == DAMAGED


def test_a_refused_delta_is_not_locked_and_the_lock_file_is_unchanged(run, team, key, ckpt, tmp_path):
    file = tmp_path / "deltahub.lock"
    run("push", ckpt, "team:me/x", "--sign", key)
    assert run("lock", "team:me/x", "-o", file).exit_code == 0
    before = file.read_bytes()
    run("push", save_checkpoint(tmp_path / "second", value=0.25), "team:me/x")
    done = run("lock", "-o", file)

    assert done.exit_code == DAMAGED
    assert "team:me/x@v2 is refused: expected a signature by" in done.stderr
    assert file.read_bytes() == before


def test_a_pull_can_ask_for_a_signature_itself(run, key, other, ckpt):
    run("push", ckpt, "me/x", "--sign", key)

    assert run("pull", "me/x", "--require-signature", "--trust", public_of(key)).exit_code == 0
    assert run("pull", "me/x", "--trust", public_of(other), "--trust", public_of(key)).exit_code == 0
    refused = run("pull", "me/x", "--trust", public_of(other))
    assert refused.exit_code == DAMAGED
    assert "which is not trusted" in refused.stderr


def test_asking_for_a_signature_without_saying_whose_is_refused(run, team, ckpt, tmp_path):
    run("push", ckpt, "me/x")
    run("push", ckpt, "team:me/x")

    assert run("pull", "me/x", "--require-signature").exit_code == 2
    assert run("pull", "team:me/x", "--require-signature").exit_code == DAMAGED
    assert run("registry", "add", "far", tmp_path / "far", "--require-signature").exit_code == 2
    assert (
        run("registry", "add", "far", tmp_path / "far", "--trust", public_of(tmp_path / "release.pem")).exit_code == 2
    )


def test_several_pulls_are_each_held_against_the_policy(run, team, key, ckpt, tmp_path):
    run("push", ckpt, "team:me/signed", "--sign", key)
    run("push", save_checkpoint(tmp_path / "second", value=0.25), "team:me/unsigned")
    done = run("pull", "team:me/signed", "team:me/unsigned")

    assert done.exit_code == DAMAGED
    assert "team:me/unsigned@v1 is refused" in done.stderr
    assert "1 of 2 pulled." in done.stderr


@pytest.mark.parametrize("wrong", ["release.pem.pub", "none.pem", "text"])
def test_a_key_that_cannot_sign_is_refused_before_anything_is_published(run, run_json, key, ckpt, tmp_path, wrong):
    (tmp_path / "text").write_text("hello")
    done = run("push", ckpt, "me/x", "--sign", tmp_path / wrong)

    assert done.exit_code != 0
    assert run_json("list") == []


def test_verify_shows_signatures_and_keys(run, run_json, team, key, other, ckpt):
    run("push", ckpt, "team:me/x", "--sign", key)
    run("sign", "team:me/x", "--key", other)
    done = run("verify", "team:me/x")
    states = sorted(one["state"] for one in run_json("verify", "--source", "team")[0]["signatures"])

    assert (done.exit_code, states) == (0, ["good", "unknown key"])
    assert "me/x@v1: signed by the key " in done.stderr
    assert "team:me/x@v1: signed by the key " in run("verify", "--all").stderr
    assert run("verify", "team:me/x", "--quiet").stderr == ""


def test_verify_finds_a_signature_that_is_not_over_the_delta(run, run_json, team, key, ckpt, tmp_path):
    first = run_json("push", ckpt, "team:me/x", "--sign", key)
    second = run_json("push", save_checkpoint(tmp_path / "second", value=0.25), "team:me/x", "--sign", key)
    name = f"{first['signed_by']}.json"
    signed = [team / PREFIX / pushed["digest"][7:] / name for pushed in (first, second)]
    signed[1].write_bytes(signed[0].read_bytes())
    done = run("verify", "team:me/x")

    assert done.exit_code == DAMAGED
    assert "me/x@v2\tits signature by the key" in done.stdout


def test_verify_without_signatures_does_not_mention_them(run, run_json, ckpt):
    run("push", ckpt, "me/x")

    assert run("verify").stderr == ""
    assert run_json("verify")[0]["signatures"] == []


def test_the_keys_of_a_registry_can_be_shown_changed_and_dropped(run, run_json, team, key, other, ckpt):
    run("push", ckpt, "team:me/x", "--sign", key)
    shown = run_json("registry", "trust", "team")
    assert (shown["require_signature"], len(shown["keys"])) == (True, 1)

    assert run("registry", "trust", "team", public_of(other)).exit_code == 0
    assert run("pull", "team:me/x").exit_code == DAMAGED
    assert run("registry", "trust", "team", public_of(other), public_of(key)).exit_code == 0
    assert run("pull", "team:me/x").exit_code == 0
    assert run_json("registry", "trust", "team", "--no-trust") == {
        "name": "team",
        "keys": [],
        "require_signature": False,
    }
    assert run("registry", "trust", "team").stdout == "team requires no signature\n"
    with pytest.warns(DeprecationWarning, match="--ask-for-none is now --no-trust"):
        assert run_json("registry", "trust", "team", "--ask-for-none")["keys"] == []


@pytest.mark.parametrize("name", ["local", "hf", "nix"])
def test_only_a_registry_that_was_added_can_ask_for_signatures(run, key, name):
    assert run("registry", "trust", name, public_of(key)).exit_code != 0


def test_a_private_key_is_never_written_into_the_settings(run, key, tmp_path):
    done = run("registry", "add", "team", tmp_path / "team", "--require-signature", "--trust", key)

    assert done.exit_code == 2
    assert "holds a private key" in done.stderr
    assert not (config_home() / "registries.json").exists()


def test_a_public_key_stays_trusted_when_its_file_is_gone(run, team, key, ckpt):
    run("push", ckpt, "team:me/x", "--sign", key)
    public_of(key).unlink()

    assert run("pull", "team:me/x").exit_code == 0
    settings = json.loads((config_home() / "registries.json").read_text())
    assert settings["registries"][0]["trust"][0].startswith("-----BEGIN PUBLIC KEY-----\n")


def test_a_hub_is_not_signed(run, ckpt, key, monkeypatch):
    done = run("push", ckpt, "hf:me/x", "--sign", key)

    assert done.exit_code != 0
    assert not (home() / "registry" / "refs").exists()
