"""combine, diff, extract, resize, scale and verify --lineage as a user types them."""

import json

import pytest

from tests.algebra.making import config_of, numbers, updates_of, write_lora, write_peft
from tests.backbones import bert


@pytest.fixture
def pair(tmp_path):
    """Two saved LoRAs."""
    return write_lora(tmp_path / "a", 1), write_lora(tmp_path / "b", 2)


def test_references_and_folders_are_combined_pushed_and_verified(run, run_json, pair, tmp_path):
    run("push", pair[0], "acme/a")
    result = run_json("combine", "acme/a", pair[1], "--weights", "0.75,-0.5", "--to", tmp_path / "c")
    first, second = map(updates_of, pair)

    assert result["folder"] == str(tmp_path / "c")
    assert [module["rank"] for module in result["modules"]] == [4, 3]
    for name, update in updates_of(tmp_path / "c").items():
        assert float((update - 0.75 * first[name] + 0.5 * second[name]).abs().max()) < 1e-5
    assert run_json("push", tmp_path / "c", "acme/c")["digest"] == result["digest"]
    shown = run_json("show", "acme/c")["config"]
    assert [parent.get("name") for parent in shown["parents"]] == ["local:acme/a@v1", None]
    assert shown["lineage"]["parameters"]["weights"] == [0.75, -0.5]
    verified = run_json("verify", "acme/c", "--lineage", "--parent", pair[1])
    assert verified["status"] == "same bytes"
    assert [parent["found"] for parent in verified["parents"]] == ["the cache", str(pair[1])]


def test_adapters_of_peft_are_pushed_combined_and_verified_as_they_are(run, run_json, tmp_path):
    for seed in (1, 2):
        run("push", write_peft(tmp_path / str(seed), seed), f"acme/p{seed}")
    assert run("combine", "acme/p1", "acme/p2", "--to", tmp_path / "c").exit_code == 0
    verified = run_json("verify", tmp_path / "c", "--lineage")

    assert verified["status"] == "same bytes"
    assert [parent["found"] for parent in verified["parents"]] == ["local:acme/p1@v1", "local:acme/p2@v1"]


def test_the_folder_is_printed_and_the_errors_of_modules_beside_it(run, pair, tmp_path):
    done = run("combine", *pair, "--method", "ties", "--rank", "1", "-o", tmp_path / "c")

    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'c'}\n")
    assert "2 modules of rank 1." in done.stderr
    assert "% of the update lost" in done.stderr
    assert f"deltahub push {tmp_path / 'c'}" in done.stderr
    assert run("combine", *pair, "--quiet", "-o", tmp_path / "d").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--weights", "1,x"], 2, "expected numbers separated by commas"),
        (["--method", "mean"], 2, "expected one of linear, cat, svd, slerp, ties, dare"),
        (["--heads", "both"], 2, "expected first or average"),
    ],
)
def test_options_that_cannot_work_are_refused(run, pair, tmp_path, arguments, code, reason):
    done = run("combine", *pair, "--to", tmp_path / "c", *arguments)
    assert done.exit_code == code
    assert reason in " ".join(done.stderr.replace("│", " ").split())


def test_a_refusal_is_one_sentence_and_json_for_programs(run, tmp_path):
    heads = [write_lora(tmp_path / str(n), n, trained={"head.weight": numbers(2, 3, seed=n)}) for n in (1, 2)]
    done = run("combine", *heads, "--to", tmp_path / "c", "--json")

    assert (done.exit_code, json.loads(done.stdout)["exit_code"]) == (2, 2)
    assert "--heads first" in done.stderr
    assert run("combine", *heads, "--to", tmp_path / "c", "--heads", "average").exit_code == 0


def test_a_delta_is_resized_and_scaled(run, run_json, pair, tmp_path):
    assert {
        module["rank"] for module in run_json("resize", pair[0], "--rank", 1, "--to", tmp_path / "r")["modules"]
    } == {1}
    assert run("resize", pair[0], "--to", tmp_path / "x").exit_code == 2
    assert run("scale", pair[0], "--to", tmp_path / "s", "--", -2).exit_code == 0
    assert config_of(tmp_path / "s")["lora_alpha"] == -6


def test_two_deltas_are_compared(run, run_json, pair, tmp_path):
    difference = run_json("diff", *pair, "--html", tmp_path / "diff.html")
    done = run("diff", *pair)

    assert [part["name"] for part in difference["updates"]] == ["block.query", "block.value"]
    assert (difference["same"], difference["backbone"]) == (False, "exact")
    assert "<svg" in (tmp_path / "diff.html").read_text("utf-8")
    assert done.stdout.splitlines()[0].split("\t")[0] == "block.query"
    assert "Backbones: exact." in done.stderr
    assert run("diff", pair[0], pair[0], "--quiet").stdout == "same\n"


def test_a_delta_is_extracted_from_two_models(run, tmp_path):
    bert().save_pretrained(tmp_path / "base")
    bert(seed=1).save_pretrained(tmp_path / "tuned")
    done = run("extract", tmp_path / "base", tmp_path / "tuned", "--rank", 2, "--to", tmp_path / "c")

    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'c'}\n")
    assert "% of the update not in it" in done.stderr
    assert "Trained as a whole: " in done.stderr
    assert run("verify", tmp_path / "c").exit_code == 0
    refused = run("verify", tmp_path / "c", "--lineage")
    assert "made by extract from whole models" in refused.stderr


def test_a_lineage_that_does_not_hold_has_the_exit_code_of_damage(run, pair, tmp_path):
    run("combine", *pair, "--to", tmp_path / "c")
    run("scale", tmp_path / "c", "2", "--to", tmp_path / "d")
    config = json.loads((tmp_path / "d" / "delta_config.json").read_text())
    config["lineage"]["parameters"]["factor"] = 3.0
    (tmp_path / "d" / "delta_config.json").write_text(json.dumps(config))
    done = run("verify", tmp_path / "d", "--lineage", "--parent", tmp_path / "c")

    assert done.exit_code == 5
    assert "is not the scale of its 1 parents: other content" in done.stdout
    assert run("verify", "--lineage").exit_code == run("verify", tmp_path / "c", "--parent", "x").exit_code == 2
