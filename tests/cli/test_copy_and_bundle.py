"""copy and bundle as a user types them."""

from __future__ import annotations

import pytest

from deltahub.cache.cache import Cache
from deltahub.hub.hub import Hub
from deltahub.registry.registry import Registry
from deltahub.settings.environment import cache_home, home
from deltahub.stores.local import LocalStore


@pytest.fixture
def team(monkeypatch) -> Registry:
    """A second registry beside the local one."""
    registries = {name: Registry(LocalStore(home() / name), name) for name in ("local", "team")}
    registries["local"] = Registry(LocalStore(home() / "registry"), "local")
    monkeypatch.setattr(Hub, "open", classmethod(lambda cls, cache_dir=None: Hub(registries, Cache(cache_home()))))
    return registries["team"]


def test_copy_brings_all_that_one_registry_has_to_another(run, run_json, ckpt, team):
    run("push", ckpt, "me/x", "--alias", "champion")
    done = run("copy", "local", "team")
    assert done.exit_code == 0
    assert done.stdout.startswith("me/x\tv1\t")
    assert "1 looked at, 1 changed, " in done.stderr
    assert "team has all of local now." in done.stderr
    assert run_json("pull", "team:me/x@champion")["reference"] == "team:me/x@v1"
    assert [copied["changed"] for copied in run_json("copy", "local", "team", "me/x")] == [False]


@pytest.mark.parametrize(
    ("arguments", "code"), [(["local", "local"], 2), (["local", "moon"], 3), (["local", "team", "me/nothing"], 3)]
)
def test_a_copy_that_cannot_be_done_is_refused(run, ckpt, team, arguments, code):
    run("push", ckpt, "me/x")
    assert run("copy", *arguments).exit_code == code
    assert team.names() == []


def test_a_bundle_goes_from_one_machine_to_another(run, run_json, ckpt, team, tmp_path):
    run("push", ckpt, "me/x", "--alias", "champion", "--tags", "sst2")
    file = tmp_path / "x.tar"
    assert run_json("bundle", "export", "me/x@champion", "-o", file)["versions"] == ["me/x@v1"]
    done = run("bundle", "import", file, "--to", "team")
    assert (done.exit_code, done.stdout) == (0, "team:me/x@v1\n")
    assert "1 of 1 are new, every byte checked." in done.stderr
    assert run_json("show", "team:me/x@champion")["tags"] == ["sst2"]
    assert run_json("bundle", "import", file, "--to", "team")["new"] == []


def test_a_damaged_bundle_exits_with_5(run, ckpt, team, tmp_path):
    run("push", ckpt, "me/x")
    run("bundle", "export", "me/x", "-o", tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes() + b"x")
    done = run("bundle", "import", tmp_path / "x.tar", "--to", "team")
    assert done.exit_code == 5
    assert "Nothing was stored. Export it again where it came from." in done.stderr
    gone = run("bundle", "import", tmp_path / "nothing.tar")
    assert gone.exit_code == 3
    assert f"there is no file {tmp_path / 'nothing.tar'}. Check the path." in gone.stderr


def test_a_hub_takes_no_history_of_others(run):
    refused = run("copy", "local", "hf")
    assert refused.exit_code == 2
    assert "takes no history with the times and authors of others" in refused.stderr
