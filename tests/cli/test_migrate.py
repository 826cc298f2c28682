"""Deltas of other places are published in a registry as they are, with what those places know of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import huggingface_hub
import pytest

from deltahub.errors import CheckpointError
from deltahub.migrate.candidate import Candidate, usable_aliases, usable_metrics, usable_tags
from deltahub.migrate.folders import in_folder
from deltahub.registry.registry import Registry
from deltahub.stores.memory import MemoryStore
from tests.foreign import CARD, diffusers, peft
from tests.hub_server import hub_server


@pytest.fixture
def tree(tmp_path):
    """Outputs as trainers and Weights & Biases leave them."""
    root = tmp_path / "work"
    for place in ("wandb/run-1_a/files/model", "outputs/sums/checkpoint-100", "outputs/sums/checkpoint-200"):
        (root / place).mkdir(parents=True)
        peft(root / place)
    (root / "wandb/run-1_a/files/wandb-summary.json").write_text(
        json.dumps({"loss": 0.25, "_step": 9, "name": "x", "nan": None})
    )
    state = {"log_history": [{"eval_loss": 2.0}, {"loss": 1.5}, {"eval_loss": 1.0, "step": 200}]}
    (root / "outputs/sums/checkpoint-200/trainer_state.json").write_text(json.dumps(state))
    (root / ".cache").mkdir()
    peft(root / ".cache")
    (root / "notes").mkdir()
    return root


def test_every_folder_with_a_delta_below_is_published_with_the_results_of_its_run(run, run_json, tree, monkeypatch):
    monkeypatch.chdir(tree)
    migrated = run_json("migrate", "wandb", "outputs", "--namespace", "acme", "--tags", "moved")
    assert {it["origin"]: it["reference"] for it in migrated} == {
        "wandb/run-1_a/files/model": "local:acme/run-1_a-model@v1",
        "outputs/sums/checkpoint-100": "local:acme/sums-checkpoint-100@v1",
        "outputs/sums/checkpoint-200": "local:acme/sums-checkpoint-200@v1",
    }
    shown = run_json("show", "acme/sums-checkpoint-200")
    assert {"moved", "origin=outputs/sums/checkpoint-200"} <= set(shown["tags"])
    assert [it["name"] for it in run_json("list", "--metric", "eval_loss<1.5")] == ["acme/sums-checkpoint-200"]
    assert [it["name"] for it in run_json("list", "--metric", "loss<1")] == ["acme/run-1_a-model"]


def test_a_migration_is_repeated_and_publishes_only_what_is_not_there(run, run_json, tree):
    run("migrate", tree / "wandb", "--namespace", "acme")
    (tree / "outputs/sums/checkpoint-100/adapter_model.safetensors").unlink()
    done = run("migrate", tree / "wandb", tree / "outputs", "--namespace", "acme", "--json")
    assert done.exit_code == 1
    results = {it["origin"].rpartition("/")[2]: it for it in json.loads(done.stdout)}
    assert (results["model"]["new"], results["model"]["version"]) == (False, "v1")
    assert results["checkpoint-200"]["new"]
    assert "adapter_model.safetensors is missing" in results["checkpoint-100"]["error"]
    assert "2 of 3 pushed." in done.stderr


def test_a_dry_run_publishes_nothing(run, run_json, tree):
    listed = run_json("migrate", tree / "outputs", "--namespace", "acme", "--dry-run")
    assert [it["name"] for it in listed] == ["acme/sums-checkpoint-100", "acme/sums-checkpoint-200"]
    assert "acme/sums-checkpoint-200" in run("migrate", tree / "outputs", "--namespace", "acme", "--dry-run").stdout
    assert run_json("list") == []


DAMAGES = {  # file to content; None to leave it out, and words of the reason
    "config": ({"adapter_config.json": b'{"peft_type": "LORA", '}, "adapter_config.json is not JSON"),
    "list": ({"adapter_config.json": b"[]"}, "expected an object"),
    "weights": ({"adapter_model.safetensors": None}, "adapter_model.safetensors is missing"),
    "truncated": ({"adapter_model.safetensors": b"x"}, "is not a safetensors file"),
    "pickle": ({"adapter_model.safetensors": None, "adapter_model.bin": b"x"}, "is a Python pickle"),
    "gguf": ({"adapter_config.json": None, "adapter_model.safetensors": None, "lora.gguf": b"GGUF"}, "lora.gguf"),
    "alone": ({"adapter_config.json": None, "adapter_model.safetensors": None, "delta.safetensors": b""}, "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_delta_that_cannot_be_published_is_named_with_the_reason_in_the_dry_run_too(run, tree, damage):
    files, reason = DAMAGES[damage]
    folder = tree / "outputs/sums/checkpoint-100"
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    tried = run("migrate", tree / "outputs", "--namespace", "acme", "--dry-run")
    assert "acme/sums-checkpoint-200" in tried.stdout
    assert "acme/sums-checkpoint-100" not in tried.stdout
    assert "1 of 2 would be migrated." in tried.stderr
    done = run("migrate", tree / "outputs", "--namespace", "acme")
    assert done.exit_code == tried.exit_code != 0
    errors = [[line for line in it.stderr.splitlines() if line.startswith("Error: ")] for it in (done, tried)]
    assert errors[0] == errors[1]
    assert str(folder) in errors[0][0]
    assert reason in errors[0][0]


def test_two_that_would_get_the_same_name_are_refused(run, tree):
    done = run("migrate", tree / "outputs", tree / "outputs", "--namespace", "acme", "--dry-run")
    assert done.exit_code == 2
    assert "would both be named acme/sums-checkpoint-100" in done.stderr


def test_a_model_of_mlflow_and_a_folder_of_one_name_are_both_refused(run, tree, monkeypatch):
    model = Candidate(
        "mlflow:models:/x/1", "sums-checkpoint-100", tree / "outputs/sums/checkpoint-200", is_version=True
    )
    monkeypatch.setattr("deltahub.migrate.sources.in_tracking_store", lambda uri: iter([model, replace(model)]))
    done = run("migrate", "mlflow:http://x", "--namespace", "acme", "--dry-run")
    assert done.exit_code == 0
    done = run("migrate", "mlflow:http://x", tree / "outputs", "--namespace", "acme", "--dry-run")
    assert done.exit_code == 2
    assert done.stderr.count("would both be named acme/sums-checkpoint-100") == 3


def test_a_folder_that_cannot_be_listed_stops_the_migration(shared_folder, as_nobody):
    (shared_folder / "sums").mkdir(mode=0)
    as_nobody()
    with pytest.raises(CheckpointError, match="sums cannot be read"):
        list(in_folder(shared_folder))


@pytest.mark.parametrize(
    ("source", "namespace", "sentence"),
    [("nothing", "acme", "There is no folder nothing"), (".", "a b", "a b"), ("local:acme", "acme", "deltahub copy")],
)
def test_a_wrong_address_is_one_error(run, source, namespace, sentence):
    done = run("migrate", source, "--namespace", namespace)
    assert done.exit_code != 0
    assert sentence in " ".join(done.stderr.split())


def test_the_adapters_of_an_organisation_are_pulled_and_published(run, run_json, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with hub_server(Registry(MemoryStore(), "served")) as server:
        api = huggingface_hub.HfApi(endpoint=server.url, token=server.token())
        for name, write in (("sums", peft), ("style", diffusers), ("data", None)):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "README.md").write_text(CARD if write is peft else "---\nlicense: mit\n---\n# A style\n")
            if write:
                write(folder)
            for repo in (f"zoo/{name}", f"other/{name}"):
                api.create_repo(repo)
                api.upload_folder(repo_id=repo, folder_path=folder)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token())
        migrated = run_json("migrate", "hf:zoo", "--namespace", "acme", "--to", "local")
        again = run_json("migrate", "hf:zoo", "--namespace", "acme", "--to", "local")
    huggingface_hub.close_session()
    assert {it["reference"] for it in migrated} == {"local:acme/style@v1", "local:acme/sums@v1"}
    assert [it["new"] for it in again] == [False, False]
    shown = run_json("show", "local:acme/sums")
    assert "sft" in shown["tags"]
    assert shown["message"].startswith("Migrated from hf:zoo/sums@")
    assert [it["name"] for it in run_json("list", "--metric", "accuracy>0.4")] == ["acme/sums"]


def test_mlflow_that_is_not_installed_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = run("migrate", "mlflow:sqlite:///x.db", "--namespace", "acme")
    assert done.exit_code == 2
    assert "pip install 'deltahub[mlflow]'" in done.stderr


def test_models_and_artifacts_of_mlflow_are_published_once_each(run_json, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")  # before its import
    import mlflow
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.create_experiment("sums", artifact_location=(tmp_path / "artifacts").as_uri())
    client.create_registered_model("summaries", tags={"team": "news"})
    (tmp_path / "model" / "peft").mkdir(parents=True)
    for number in (1, 2):
        run = client.create_run(experiment, run_name="first")
        client.log_metric(run.info.run_id, "rouge", 0.1 * number)
        peft(tmp_path / "model" / "peft")
        (tmp_path / "model" / "peft" / "README.md").write_text(f"{number}")
        client.log_artifacts(run.info.run_id, str(tmp_path / "model"), "model")
        client.create_model_version("summaries", f"{run.info.artifact_uri}/model", run.info.run_id)
    client.set_registered_model_alias("summaries", "champion", "1")
    client.log_artifacts(run.info.run_id, str(tmp_path / "model" / "peft"), "last")
    migrated = run_json("migrate", f"mlflow:{uri}", "--namespace", "acme")
    assert [it["reference"] for it in migrated] == [
        "local:acme/summaries@v1",
        "local:acme/summaries@v2",
        f"local:acme/first-{run.info.run_id[:8]}-last@v1",
    ]
    assert "team=news" in run_json("show", "acme/summaries")["tags"]
    assert run_json("show", "acme/summaries@champion")["version"] == "v1"
    assert {it["name"] for it in run_json("list", "--metric", "rouge>0.15")} == {
        "acme/summaries",
        f"acme/first-{run.info.run_id[:8]}-last",
    }

    def no_address(*_, **__):  # a server of MLflow 2 answers so
        raise mlflow.exceptions.MlflowException("404 != 200", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(mlflow.MlflowClient, "search_logged_models", no_address)
    again = run_json("migrate", f"mlflow:{uri}", "--namespace", "acme")
    assert [(it["reference"], it["new"]) for it in again] == [(it["reference"], False) for it in migrated]


def test_only_what_a_version_can_have_comes_along():
    assert usable_metrics({"a": 1, "_b": 2, "c": float("nan"), "d e": 1.0, "f": True, "g": "1"}) == {"a": 1}
    assert usable_tags(["a=b", "a=b c@", "x"]) == ("a=b", "x")
    assert usable_aliases(["champion", "v1", "a b"]) == ("champion",)
