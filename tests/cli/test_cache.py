"""cache list, show, prune, verify, pin and unpin as a user types them."""

import os
import shutil
from pathlib import Path

import pytest
from deltahub_cli.errors import DAMAGED
from deltahub_cli.options import size_in_bytes
from typer import BadParameter

from deltahub.settings.environment import cache_home
from tests.checkpoints import content_of, save_checkpoint


@pytest.fixture
def two(run, tmp_path) -> dict[str, Path]:
    """Two deltas that were pushed and pulled, the first last used long ago: their folders in the cache, by name."""
    folders = {}
    for number, name in enumerate(("me/old", "me/new")):
        run("push", save_checkpoint(tmp_path / str(number), value=float(number)), name)
        folders[name] = Path(run("pull", name).stdout.strip())
    os.utime(folders["me/old"], (1, 1))
    return folders


def names(listed) -> list[str]:
    return [entry["origin"] for entry in listed]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def test_the_list_shows_reference_size_and_pin_of_each_delta(run, run_json, two):
    run("cache", "pin", "me/new")
    done = run("cache", "list")
    listed = {entry["origin"]: entry for entry in run_json("cache", "list")}

    assert [
        line.split("\t")[1:] for line in sorted(done.stdout.splitlines(), key=lambda line: line.split("\t")[1])
    ] == [
        ["local:me/new@v1", done.stdout.splitlines()[0].split("\t")[2], listed["local:me/new@v1"]["used"], "pinned"],
        ["local:me/old@v1", done.stdout.splitlines()[0].split("\t")[2], "1970-01-01T00:00Z", ""],
    ]
    assert "2 deltas, " in done.stderr
    assert "deltahub cache list --hf" in done.stderr
    for name, folder in two.items():
        entry = listed[f"local:{name}@v1"]
        assert entry["size"] == sum(path.stat().st_size for path in folder.iterdir())
        assert entry["pinned"] == ("local:me/new@v1" if name == "me/new" else None)


def test_a_digest_its_start_and_latest_name_what_is_in_the_cache(run, run_json, two):
    digest = {entry["origin"]: entry["digest"] for entry in run_json("cache", "list")}["local:me/new@v1"]
    for name in (digest[:19], f"me/new@{digest[:19]}", f"local:me/new@{digest}", "me/new@latest"):
        assert run_json("cache", "show", name)["digest"] == digest
        assert run_json("cache", "pin", name)["digest"] == digest
        assert run_json("cache", "verify", name)[0]["digest"] == digest
        assert run_json("cache", "unpin", name)["was_pinned"]
    assert run("cache", "show", f"me/old@{digest[:19]}").exit_code == 3


def test_prune_with_a_limit_removes_the_least_recently_used(run, run_json, two):
    sizes = [entry["size"] for entry in run_json("cache", "list")]
    dry = run("cache", "prune", "--max", f"{max(sizes)}B", "--dry-run")

    assert dry.stdout.startswith("1 would be removed, ")
    assert "local:me/old@v1, last used 1970-01-01T00:00Z" in dry.stderr
    assert len(run_json("cache", "list")) == 2
    assert len(run_json("cache", "prune", "--max", f"{max(sizes)}B")["removed"]) == 1
    assert names(run_json("cache", "list")) == ["local:me/new@v1"]


def test_prune_without_options_removes_deltas_unused_for_30_days(run, run_json, two):
    assert run("cache", "prune").stdout.startswith("1 removed, ")
    assert names(run_json("cache", "list")) == ["local:me/new@v1"]


def test_a_pinned_delta_is_kept_until_unpinned(run, run_json, two):
    shutil.rmtree(two["me/old"])
    done = run("cache", "pin", "me/old@latest")
    assert (done.stdout, Path(two["me/old"]).is_dir()) == ("local:me/old@v1\n", True)
    assert "stays until: deltahub cache unpin local:me/old@v1" in done.stderr
    os.utime(two["me/old"], (1, 1))
    assert run_json("cache", "prune", "--older", "0s", "--max", "0B")["removed"] != []
    assert names(run_json("cache", "list")) == ["local:me/old@v1"]

    assert run("cache", "unpin", "me/old").exit_code == 0
    assert "It was not pinned." in run("cache", "unpin", "me/old").stderr
    assert len(run_json("cache", "prune")["removed"]) == 1


def test_pinning_a_delta_that_no_source_has_is_refused(run):
    done = run("cache", "pin", "me/nix")

    assert done.exit_code != 0
    assert "me/nix was not found" in done.stderr


def test_show_checks_a_delta_in_the_cache(run, run_json, two):
    shown = run_json("cache", "show", "me/new")
    assert (shown["damage"], len(shown["files"])) == (None, 4)
    assert run_json("cache", "show", shown["digest"][:19])["folder"] == str(two["me/new"])
    assert "state\twhole\n" in run("cache", "show", "me/new").stdout

    damage(two["me/new"] / "README.md")
    assert "state\tdamaged: README.md" in run("cache", "show", "me/new").stdout


def test_show_and_unpin_of_a_missing_delta_list_the_existing_ones(run, two):
    for command in ("show", "unpin"):
        done = run("cache", command, "me/nix")
        assert done.exit_code != 0
        assert "me/nix was not found. Looked in: the cache" in done.stderr


def test_verify_repairs_from_where_a_delta_was_pulled(run, run_json, two):
    before = content_of(two["me/new"])
    damage(two["me/new"] / "delta.safetensors")
    (two["me/old"] / "README.md").unlink()

    assert run("cache", "verify").exit_code == DAMAGED
    assert run("cache", "verify", "me/old").exit_code == DAMAGED
    done = run("cache", "verify", "--repair")
    assert (done.exit_code, done.stdout.count("\trepaired\n")) == (0, 2)
    assert content_of(two["me/new"]) == before
    assert run("cache", "verify").stdout == "2 checked, all intact.\n"
    assert run_json("cache", "verify", "--repair")[0]["damage"] is None


def test_unrepairable_damage_is_named_with_the_reason(run, run_json, two):
    damage(two["me/new"] / "README.md")
    assert run("rm", "me/new@v1").exit_code == 0
    done = run("cache", "verify", "--repair")

    assert done.exit_code == DAMAGED
    assert "me/new" in done.stdout
    assert "repaired" not in done.stdout


def test_a_delta_whose_origin_is_unknown_is_not_repaired(run, two):
    (two["me/new"] / ".deltahub-origin.json").unlink()
    damage(two["me/new"] / "README.md")

    assert run("cache", "verify", "--repair").exit_code == DAMAGED


def test_hugging_faces_own_cache_is_listed_and_not_touched(run, run_json, monkeypatch, tmp_path):
    hub = tmp_path / "hf"
    snapshot = hub / "models--acme--tiny" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (hub / "models--acme--tiny" / "refs").mkdir()
    (hub / "models--acme--tiny" / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text("{}")
    (hub / "datasets--acme--odd").mkdir()
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(hub))
    before = content_of(hub)
    listed = run_json("cache", "list", "--hf")

    assert [(repo["name"], repo["kind"], repo["revisions"], repo["size"]) for repo in listed] == [
        ("acme/tiny", "model", 1, 2)
    ]
    done = run("cache", "list", "--hf")
    assert done.stdout.startswith("acme/tiny\tmodel\t1\t")
    assert "datasets--acme--odd" in done.stderr
    assert content_of(hub) == before


def test_no_cache_of_hugging_face_is_no_error(run, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "none"))
    done = run("cache", "list", "--hf")

    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "Hugging Face's cache is empty.\n")


@pytest.mark.parametrize(
    ("text", "size"), [("10GB", 10**10), ("1.5 MiB", 1572864), ("500mb", 5 * 10**8), ("7B", 7), ("0B", 0)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert size_in_bytes(text, "--max") == size


@pytest.mark.parametrize("text", ["10", "GB", "-1GB", "10IB", "1e9B", "", "10 GB x"])
def test_an_invalid_size_is_refused(run, text):
    with pytest.raises(BadParameter, match="such as 10GB"):
        size_in_bytes(text, "--max")
    assert run("cache", "prune", f"--max={text}").exit_code == 2


def test_the_cache_is_where_the_environment_says(run, two):
    assert run("cache", "path").stdout == f"{cache_home()}\n"


def test_a_delta_is_shown_by_every_name_it_was_pulled_by(run, run_json, ckpt):
    for name in ("me/one", "me/two"):
        run("push", ckpt, name)
        run("pull", name)
    assert run_json("cache", "show", "me/one")["digest"] == run_json("cache", "show", "me/two")["digest"]


def test_a_name_with_two_versions_in_the_cache_is_refused_with_both(run, ckpt, tmp_path):
    run("push", ckpt, "me/x")
    run("push", save_checkpoint(tmp_path / "other", value=2.0), "me/x")
    for version in ("v1", "v2"):
        run("pull", f"me/x@{version}")
    done = run("cache", "show", "me/x")
    assert done.exit_code == 2
    assert "me/x means 2 deltas in the cache" in done.stderr
    assert all(f"local:me/x@{version} (sha256:" in done.stderr for version in ("v1", "v2"))
    assert run("cache", "show", "me/x@v2").exit_code == 0
