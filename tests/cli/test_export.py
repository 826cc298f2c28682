"""pull --format peft as a user types it."""

import json

import pytest

from deltahub import AdapterModel, LoraModel
from tests.backbones import gpt2, llama


@pytest.fixture
def pushed(run, tmp_path):
    """Pushes a fresh delta."""

    def push(backbone, kind=LoraModel, **options):
        delta = kind(backbone, **options)
        delta.freeze_module()
        delta.save_finetuned(tmp_path / "delta")
        assert run("push", tmp_path / "delta", "me/x", "--allow-untrained").exit_code == 0

    return push


def test_an_export_says_which_servers_can_load_it(run, pushed, tmp_path):
    pushed(llama())
    done = run("pull", "me/x", "--format", "peft", "--to", tmp_path / "out")

    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'out'}\n")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert f'PeftModel.from_pretrained(model, "{tmp_path / "out"}")' in done.stderr
    assert f"vllm serve MODEL --enable-lora --lora-modules NAME={tmp_path / 'out'}" in done.stderr


def test_the_page_says_what_a_server_refuses_instead_of_a_command(run, run_json, pushed, tmp_path):
    pushed(llama(), use_dora=True)
    done = run("pull", "me/x", "--format", "peft", "--to", tmp_path / "out")

    assert "it also is DoRA." in done.stderr
    assert "vllm serve" not in done.stderr
    written = run_json("pull", "me/x", "--format", "peft", "--to", tmp_path / "out")
    assert written["notes"] == ["vLLM refuses it, and LoRAX would leave out a part: it also is DoRA."]
    assert (written["version"], written["format"]) == ("v1", "peft")


def test_a_backbone_is_taken_where_it_is_needed(run, pushed, tmp_path):
    pushed(gpt2())
    gpt2().save_pretrained(tmp_path / "gpt2")
    refused = run("pull", "me/x", "--format", "peft", "--to", tmp_path / "out")
    done = run("pull", "me/x", "--format", "peft", "--to", tmp_path / "out", "--backbone", tmp_path / "gpt2")

    assert refused.exit_code != 0
    assert "--backbone on the command line" in refused.stderr
    assert done.exit_code == 0


def test_a_delta_without_a_form_in_peft_is_an_error_and_writes_nothing(run, pushed, tmp_path):
    pushed(llama(), AdapterModel)
    done = run("pull", "me/x", "--format", "peft", "--to", tmp_path / "out")

    assert done.exit_code != 0
    assert "PEFT has no bottleneck adapters" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--format", "peft"], ["--backbone", "x"], ["--format", "onnx", "--to", "x"]])
def test_options_that_do_not_go_together_are_refused(run, ckpt, arguments):
    run("push", ckpt, "me/x")

    assert run("pull", "me/x", *arguments).exit_code == 2
