"""verify, cache and inspect as a user types them."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from deltahub.settings.environment import home
from tests.backbones import bert
from tests.handle.saved import trained


@pytest.fixture
def pulled(run, ckpt) -> Path:
    """A delta that was pushed and pulled: its folder in the cache."""
    run("push", ckpt, "me/x")
    return Path(run("pull", "me/x").stdout.strip())


def damage(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_verify_says_that_all_is_intact(run, pulled):
    done = run("verify")
    assert (done.exit_code, done.stdout) == (0, "1 checked, all intact.\n")


def test_verify_names_what_is_damaged_and_exits_with_5(run, run_json, pulled, ckpt):
    digits = hashlib.sha256((ckpt / "delta.safetensors").read_bytes()).hexdigest()
    damage(home() / "registry" / "objects" / "sha256" / digits[:2] / digits[2:])
    done = run("verify", "me/x")
    assert done.exit_code == 5
    assert "me/x@v1" in done.stdout
    assert "delta.safetensors is damaged" in done.stdout
    assert run("push", ckpt, "me/x").exit_code == 0  # an intact copy repairs it
    assert run("verify").exit_code == 0


def test_verify_looks_at_a_folder_too(run, ckpt):
    assert run("verify", ckpt).exit_code == 0
    damage(ckpt / "delta.safetensors")
    assert run("verify", ckpt).exit_code == 5
    done = run("verify", ckpt, "--json")
    (found,) = json.loads(done.stdout)
    assert (done.exit_code, found["reference"]) == (5, str(ckpt))
    assert "delta.safetensors is damaged" in found["damage"]


def test_verify_repairs_from_the_cache_and_says_so(run, run_json, pulled, ckpt):
    digits = hashlib.sha256((ckpt / "delta.safetensors").read_bytes()).hexdigest()
    damage(home() / "registry" / "objects" / "sha256" / digits[:2] / digits[2:])
    done = run("verify", "me/x", "--repair")
    assert (done.exit_code, done.stdout) == (0, "1 checked, all intact.\n")
    assert "me/x@v1: delta.safetensors was repaired from the cache." in done.stderr
    assert run_json("verify", "--all") == [
        {"reference": "local:me/x@v1", "repaired": {}, "damage": None, "signatures": []}
    ]


def test_verify_that_cannot_repair_lists_remaining_damage_and_exits_with_5(run, ckpt):
    run("push", ckpt, "me/x")
    digits = hashlib.sha256((ckpt / "delta.safetensors").read_bytes()).hexdigest()
    damage(home() / "registry" / "objects" / "sha256" / digits[:2] / digits[2:])
    assert "Try --repair, or push them again from intact copies." in run("verify").stderr
    done = run("verify", "--repair")
    assert done.exit_code == 5
    assert "Push them again from intact copies." in done.stderr


def test_a_damaged_reference_document_exits_with_5(run, pulled):
    (home() / "registry/refs/me/x.json").write_bytes(b"{")
    for arguments in (["verify"], ["verify", "me/x", "--repair"], ["pull", "me/x"], ["show", "me/x"], ["log", "me/x"]):
        assert run(*arguments).exit_code == 5
    assert "The reference document of me/x is damaged" in run("show", "me/x").stderr


def test_a_damaged_token_of_a_hub_is_named_by_its_key_and_exits_with_5(run, run_json, pulled):
    token = run_json("serve", "token", "create", "--name", "ci", "--scope", "read")
    key = f"hub/tokens/{token['id']}.json"
    path = home() / "registry" / key
    path.write_bytes(path.read_bytes().replace(b'"read"', b'"admin"'))
    for arguments in (["verify", "--all"], ["verify", "--all", "--repair"]):
        done = run(*arguments, "--json")
        assert done.exit_code == 5
        (damaged,) = (found for found in json.loads(done.stdout) if found["damage"])
        assert damaged["reference"] == f"local:{key}"
        assert damaged["damage"].startswith(
            f"{key} is damaged: expected a token's document, found bytes that do not match"
        )
        assert damaged["damage"].endswith("Delete that key, and make a new token: deltahub serve token create")
    assert run_json("serve", "token", "list") == []


@pytest.mark.parametrize("arguments", [["me/x", "--all"], ["{ckpt}", "--repair"]])
def test_verify_refuses_options_it_could_only_partly_apply(run, ckpt, arguments):
    assert run("verify", *(argument.format(ckpt=ckpt) for argument in arguments)).exit_code == 2


def test_verify_of_a_folder_that_is_not_there_says_so(run):
    done = run("verify", "./nowhere")
    assert done.exit_code == 2
    assert "'./nowhere' is a path; expected a delta's name" in done.stderr


def test_a_damaged_manifest_hides_neither_the_log_nor_the_marks(run, run_json, ckpt):
    run("push", ckpt, "me/x")  # and not pulled: what is in the cache is shown from there
    digits = run_json("show", "me/x")["digest"].removeprefix("sha256:")
    run("alias", "me/x", "champion")
    damage(home() / "registry" / "objects" / "sha256" / digits[:2] / digits[2:])
    assert run("show", "me/x").exit_code == 5
    assert [move["action"] for move in run_json("log", "me/x")] == ["push", "alias"]
    assert run("tag", "me/x", "damaged").exit_code == 0
    assert run("alias", "me/x", "champion", "--remove").exit_code == 0


@pytest.mark.parametrize("age", [f"{'9' * 400}w", f"{'9' * 5000}s", "-1d", "1"])
def test_an_age_beyond_all_time_is_wrong_usage(run, age):
    assert run("cache", "prune", f"--older={age}").exit_code == 2


def test_verify_of_an_unknown_delta_is_not_intact(run, pulled):
    assert run("verify", "me/unknown").exit_code == 3


def test_the_cache_lists_checks_and_forgets(run, run_json, pulled):
    (entry,) = run_json("cache", "list")
    assert ("local:me/x@v1", str(pulled)) == (entry["origin"], entry["folder"])
    assert run("cache", "verify").exit_code == 0
    assert run_json("cache", "prune") == {"removed": [], "freed": 0, "dry_run": False}
    assert [entry["digest"]] == run_json("cache", "prune", "--older", "0s")["removed"]
    assert (run("cache", "list").stdout, run("cache", "list").stderr) == ("", "The cache is empty.\n")
    assert run("cache", "list", "--quiet").output == ""


def test_damage_in_the_cache_is_named_and_then_repaired(run, pulled):
    damage(pulled / "delta.safetensors")
    done = run("cache", "verify")
    assert done.exit_code == 5
    assert "delta.safetensors is damaged" in done.stdout
    assert run("pull", "me/x").exit_code == 0
    assert run("cache", "verify").exit_code == 0


def test_a_strange_age_is_wrong_usage(run):
    done = run("cache", "prune", "--older", "soon")
    assert done.exit_code == 2
    assert "30d" in done.stderr


def test_the_cache_says_where_it_is(run, monkeypatch, tmp_path):
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / "elsewhere"))
    assert f"{tmp_path / 'elsewhere'}\n" == run("cache", "path").stdout


def test_inspect_shows_a_delta_without_torch(run, run_json, ckpt):
    shown = run_json("inspect", ckpt)
    assert [tensor["name"] for tensor in shown["tensors"]] == [
        "classifier.bias",
        "layer.query.deltas.lora_A",
        "layer.query.deltas.lora_B",
    ]
    assert "layer.query.deltas.lora_A" in run("inspect", ckpt).stdout


def test_inspect_shows_the_common_names_of_a_backbone(run, run_json, tmp_path):
    config = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": 50,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shown = run_json("inspect", tmp_path)
    assert shown["class"] == "BertForSequenceClassification"
    expected = [["bert.encoder.layer.*.attention.self.query"], 2]
    assert expected == shown["common_names"]["bert.encoder.block.*.attn.q"]
    text = run("inspect", tmp_path).stdout
    assert "0-1(BertLayer)" in text
    assert "bert.encoder.block.*.attn.q" in text


def test_inspect_of_something_else_says_what_it_expected(run, tmp_path):
    done = run("inspect", tmp_path)
    assert done.exit_code == 1
    assert "expected delta_config.json or config.json" in done.stderr


def test_a_probe_is_run_on_the_backbone(run, run_json, tmp_path):
    backbone = bert()
    backbone.save_pretrained(tmp_path / "bert")
    trained(backbone).save_finetuned(tmp_path / "delta", probe={"input_ids": torch.tensor([[1, 2, 3]])})
    run("push", tmp_path / "delta", "acme/sst2")

    for target in ("acme/sst2", tmp_path / "delta"):
        assert run_json("verify", target, "--probe", "--backbone", tmp_path / "bert")[0]["damage"] is None
    assert run("verify", "acme/sst2", "--probe").exit_code == 2
    assert "--dequantised is for the backbone of --probe" in run("verify", "acme/sst2", "--dequantised").stderr
    bert().double().save_pretrained(tmp_path / "double")
    double = ("verify", "acme/sst2", "--probe", "--backbone", tmp_path / "double")
    assert "other precision" in run(*double).stderr
    assert run_json(*double, "--dequantised")[0]["damage"] is None
    assert run("verify", tmp_path / "delta", "--lineage", "--probe", "--backbone", tmp_path / "bert").exit_code == 2


def test_a_probe_is_run_on_the_delta_of_the_source_that_was_verified(run, run_json, tmp_path):
    backbone = bert()
    backbone.save_pretrained(tmp_path / "bert")
    trained(backbone).save_finetuned(tmp_path / "plain")
    trained(bert()).save_finetuned(tmp_path / "probed", probe={"input_ids": torch.tensor([[1, 2, 3]])})
    run("source", "add", "team", tmp_path / "team")
    run("push", tmp_path / "plain", "acme/sst2")
    run("push", tmp_path / "probed", "team:acme/sst2")

    done = run_json("verify", "acme/sst2", "--source", "team", "--probe", "--backbone", tmp_path / "bert")
    assert done[0]["damage"] is None
    assert run("verify", "acme/sst2", "--probe", "--backbone", tmp_path / "bert").exit_code == 1
