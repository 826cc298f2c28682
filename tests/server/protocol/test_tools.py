"""The tools that people have, as processes of their own that know nothing of this hub but HF_ENDPOINT."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltahub import LoraModel, export_peft
from tests.backbones import inputs_for, llama, logits_of, stir

# Every start of the command takes a second, so several run in one process; what each wrote is kept apart.
_HF = """
import contextlib, io, json, sys
from huggingface_hub.cli.hf import main

written = []
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as done:
            assert not done.code, (words, done.code, out.getvalue())
    written.append(out.getvalue())
print(json.dumps(written))
"""


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


def hf(environment: dict[str, str], *lines: str) -> list[str]:
    """What `hf` writes for each line of arguments."""
    return json.loads(run(environment, sys.executable, "-c", _HF, json.dumps([shlex.split(line) for line in lines])))


@pytest.mark.slow
def test_the_hf_command_uploads_lists_tags_and_downloads(hub, environment, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}" + bytes(10))
    (folder / "README.md").write_text("---\ntags: [sst2]\n---\n# x\n")

    who, _, _, tags, found, _ = hf(
        environment,
        "auth whoami",
        f"upload acme/cli {folder} --commit-message 'by hf'",
        "repos tag create acme/cli v1.0 -m first",
        "repos tag list acme/cli",
        "models ls --search cli --quiet",
        f"download acme/cli --revision v1.0 --local-dir {tmp_path / 'copy'}",
    )

    assert ("acme" in who, "v1.0" in tags, "acme/cli" in found) == (True, True, True)
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

from huggingface_hub import create_repo, upload_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

create_repo("acme/served")
upload_folder(repo_id="acme/served", folder_path="written")
backbone = AutoModelForCausalLM.from_pretrained("backbone").eval()
model = PeftModel.from_pretrained(backbone, "acme/served").eval()
with torch.no_grad():
    save_file({"logits": model(**load_file("inputs.safetensors")).logits}, "found.safetensors")
"""


@pytest.mark.slow
def test_peft_and_transformers_push_and_load_what_is_theirs_and_what_was_written_for_them(
    hub, environment, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = llama()
    model.save_pretrained("backbone")
    delta = LoraModel(model)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned("delta")
    export_peft("delta", "written")
    save_file(inputs_for(model), "inputs.safetensors")

    assert "tensors are equal" in run(environment, sys.executable, "-c", _PEFT)

    assert torch.allclose(load_file("found.safetensors")["logits"], logits_of(model), atol=1e-4)
    adapter, backbone = (hub.registry.document(name).versions["v1"] for name in ("acme/adapter", "acme/tiny-bert"))
    assert (adapter.message, adapter.summary["delta_type"]) == ("by peft", "peft lora")
    assert adapter.summary["backbone_checkpoint_name"] == "acme/tiny-bert"
    assert backbone.summary["delta_type"] == "transformers bert"


@pytest.mark.slow
def test_the_hf_command_looks_after_repositories(hub, environment, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    *_, info, _, _, _, checked, _, _, _, listed = hf(
        environment,
        "repos create acme/x --private",
        f"upload acme/x {tmp_path / 'a.txt'}",
        f"upload acme/x {tmp_path / 'a.txt'} sub/b.txt",
        "models info acme/x",
        "repos branch create acme/x exp/one",
        "repos delete-files acme/x sub/b.txt",
        "download acme/x",
        "cache verify acme/x",
        "repos settings acme/x --public",
        "repos branch delete acme/x exp/one",
        "repos move acme/x acme/y",
        "repos list --quiet",
    )
    assert ("sub/b.txt" in info, "match" in checked, "acme/y" in listed) == (True, True, True)
    assert hub.registry.document("acme/y").branches == {"main": "v1"}
    _, left = hf(environment, "repos delete acme/y --yes", "repos list --quiet")
    assert left.strip() == ""
