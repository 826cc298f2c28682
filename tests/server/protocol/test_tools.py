"""The tools that people have, as processes of their own that know nothing of this hub but HF_ENDPOINT."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HF = Path(sys.executable).parent / "hf"


@pytest.fixture
def environment(hub, tmp_path) -> dict[str, str]:
    """What a user sets."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    return {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": hub.token("write", "acme"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }


def run(environment: dict[str, str], *command: object) -> str:
    """What a command says, when it went well."""
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_hf_command_uploads_lists_tags_and_downloads(hub, environment, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}" + bytes(10))
    (folder / "README.md").write_text("---\ntags: [sst2]\n---\n# x\n")

    assert "acme" in run(environment, HF, "auth", "whoami")
    run(environment, HF, "upload", "acme/cli", folder, "--commit-message", "by hf")
    run(environment, HF, "repos", "tag", "create", "acme/cli", "v1.0", "-m", "first")
    assert "v1.0" in run(environment, HF, "repos", "tag", "list", "acme/cli")
    assert "acme/cli" in run(environment, HF, "models", "ls", "--search", "cli", "--quiet")
    run(environment, HF, "download", "acme/cli", "--revision", "v1.0", "--local-dir", tmp_path / "copy")

    assert (tmp_path / "copy/weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()
    entry = hub.registry.document("acme/cli").versions["v1"]
    assert (entry.message, entry.author.startswith("tester-")) == ("by hf", True)


_PEFT = """
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, BertConfig, BertModel

torch.manual_seed(0)
config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=40)
BertModel(config).push_to_hub("acme/tiny-bert", private=True)
base = AutoModel.from_pretrained("acme/tiny-bert")
model = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
model.push_to_hub("acme/adapter", commit_message="by peft")
found = PeftModel.from_pretrained(AutoModel.from_pretrained("acme/tiny-bert"), "acme/adapter")
expected, there = model.state_dict(), found.state_dict()
assert expected.keys() == there.keys()
assert all(torch.equal(expected[name], there[name]) for name in expected)
print(len(expected), "tensors are equal")
"""


@pytest.mark.slow
def test_peft_and_transformers_push_and_load(hub, environment):
    assert "tensors are equal" in run(environment, sys.executable, "-c", _PEFT)

    adapter, backbone = (hub.registry.document(name).versions["v1"] for name in ("acme/adapter", "acme/tiny-bert"))
    assert (adapter.message, adapter.summary["delta_type"]) == ("by peft", "peft lora")
    assert adapter.summary["backbone_checkpoint_name"] == "acme/tiny-bert"
    assert backbone.summary["delta_type"] == "transformers bert"


@pytest.mark.slow
def test_the_hf_command_looks_after_repositories(hub, environment, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    run(environment, HF, "repos", "create", "acme/x", "--private")
    run(environment, HF, "upload", "acme/x", tmp_path / "a.txt")
    run(environment, HF, "upload", "acme/x", tmp_path / "a.txt", "sub/b.txt")
    assert "sub/b.txt" in run(environment, HF, "models", "info", "acme/x")
    run(environment, HF, "repos", "branch", "create", "acme/x", "exp/one")
    run(environment, HF, "repos", "delete-files", "acme/x", "sub/b.txt")
    run(environment, HF, "download", "acme/x")
    assert "match" in run(environment, HF, "cache", "verify", "acme/x")
    run(environment, HF, "repos", "settings", "acme/x", "--public")
    run(environment, HF, "repos", "branch", "delete", "acme/x", "exp/one")
    run(environment, HF, "repos", "move", "acme/x", "acme/y")
    assert "acme/y" in run(environment, HF, "repos", "list", "--quiet")
    assert hub.registry.document("acme/y").branches == {"main": "v1"}
    run(environment, HF, "repos", "delete", "acme/y", "--yes")
    assert run(environment, HF, "repos", "list", "--quiet").strip() == ""
