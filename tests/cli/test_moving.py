"""copy as a user types it."""

from __future__ import annotations

import pytest

from deltahub.cache import Cache
from deltahub.hub import Hub
from deltahub.places import cache_home, home
from deltahub.registry.registry import Registry
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
