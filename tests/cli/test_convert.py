"""deltahub convert, and pull into other formats, as a user types them."""

import pytest

from deltahub import LoraModel
from tests.backbones import llama, stir


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone") / "llama"
    llama().save_pretrained(folder)
    return folder


@pytest.fixture
def dora(tmp_path, llama_folder):
    from deltahub.handle.recording import load_backbone

    delta = LoraModel(load_backbone(str(llama_folder)), lora_r=4, use_dora=True)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path / "dora")
    return tmp_path / "dora"


def test_a_conversion_says_how_far_it_is_from_its_source(run, dora, llama_folder, tmp_path):
    options = ["--format", "peft", "--backbone", llama_folder, "--verify"]
    done = run("convert", dora, tmp_path / "out", *options, "--as-lora", 2)

    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'out'}\n")
    assert "of the update lost" in done.stderr
    assert "Verified: the outputs differ by" in done.stderr
    assert "vllm serve" in done.stderr


def test_json_has_the_errors_and_the_comparison(run_json, dora, llama_folder, tmp_path):
    result = run_json(
        *("convert", dora, tmp_path / "out", "--format", "merged", "--backbone", llama_folder),
        *("--verify", "--as-lora", 2),
    )

    assert (result["format"], result["folder"]) == ("merged", str(tmp_path / "out"))
    assert {module["rank"] for module in result["modules"]} == {2}
    assert 0 <= result["verified"]["difference"] <= result["verified"]["bound"]


def test_a_missing_backbone_and_an_unknown_format_are_wrong_usage(run, dora, tmp_path):
    refused = run("convert", dora, tmp_path / "out", "--format", "merged")

    assert refused.exit_code == 2
    assert "A merged model needs the backbone of the delta" in refused.stderr
    assert run("convert", dora, tmp_path / "out", "--format", "onnx").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_pulled_delta_is_merged_and_a_reference_with_an_alias_converted(run, run_json, dora, llama_folder, tmp_path):
    run("push", dora, "me/x", "--alias", "champion")
    pulled = run_json("pull", "me/x", "--format", "merged", "--to", tmp_path / "model", "--backbone", llama_folder)
    done = run("convert", "me/x@champion", tmp_path / "adapter", "--format", "peft")

    assert (pulled["reference"], pulled["format"]) == ("local:me/x@v1", "merged")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert done.exit_code == 0
    assert pulled["digest"] in (tmp_path / "adapter" / "README.md").read_text()


def test_another_backbone_is_refused_with_the_option_to_insist(run, dora, tmp_path):
    llama(seed=1).save_pretrained(tmp_path / "other")
    run("push", dora, "me/y")
    for command in (("convert", dora, tmp_path / "out"), ("pull", "me/y", "--to", tmp_path / "out")):
        refused = run(*command, "--format", "peft", "--backbone", tmp_path / "other")
        assert refused.exit_code == 5
        assert "deltahub convert: --no-check-hash" in refused.stderr
    assert not (tmp_path / "out").exists()
    insisted = ("--format", "peft", "--backbone", tmp_path / "other", "--no-check-hash")
    assert run("convert", dora, tmp_path / "out", *insisted).exit_code == 0
