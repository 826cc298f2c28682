"""DDP and FSDP2 with two processes: what they train is what one process trains, and it loads in this one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from deltahub import AutoDeltaModel
from tests.backbones import bert
from tests.training.matrix import HEADED, KINDS, answers, put_on, train_plainly
from tests.training.processes import STEPS, WORLD, quantised, train_everywhere

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # all of them need what two processes trained

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left. They are forks of this one, which has imported what both need: that takes longest."""
    folder = tmp_path_factory.mktemp("distributed")
    multiprocessing.start_processes(train_everywhere, (folder,), nprocs=WORLD, start_method="fork")
    return folder


@pytest.mark.parametrize("framework", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_trains(framework, kind, trained):
    alone, fresh = bert(), bert()
    delta = put_on(alone, kind, train=HEADED)
    losses = train_plainly(alone, STEPS)
    together = torch.load(trained / framework / kind / "result.pt", weights_only=True)
    loaded = AutoDeltaModel.from_finetuned(trained / framework / kind / "delta", backbone_model=fresh)

    assert losses == pytest.approx(together["losses"], abs=TOLERANCE)
    assert delta.state_dict().keys() == loaded.state_dict().keys()
    for name, tensor in delta.state_dict().items():
        assert torch.allclose(tensor, loaded.state_dict()[name], atol=TOLERANCE), name
    assert torch.allclose(answers(alone), answers(fresh), atol=TOLERANCE)
    assert torch.equal(together["logits"], answers(fresh))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_delta_detaches_attaches_and_reloads(kind, trained):
    result = torch.load(trained / "fsdp" / kind / "result.pt", weights_only=True)

    assert torch.allclose(answers(bert()), result["bare"], atol=1e-6)
    assert not torch.allclose(result["bare"], result["logits"], atol=1e-3)
    assert torch.equal(result["logits"], result["again"])
    assert torch.equal(result["logits"], result["reloaded"])


def test_a_sharded_delta_merges_and_comes_out_again(trained):
    result = torch.load(trained / "merged.pt", weights_only=True)

    assert torch.allclose(result["before"], result["merged"], atol=1e-5)
    assert torch.equal(result["before"], result["after"])


@pytest.mark.parametrize("what", ["new", "loaded"])
def test_a_sharded_backbone_takes_no_more_deltas(what, trained):
    refused = torch.load(trained / "refusals.pt", weights_only=True)

    assert "Add deltas before fully_shard" in refused[what]


def test_a_prefix_whose_network_is_sharded_apart_says_so(trained):
    refused = torch.load(trained / "refusals.pt", weights_only=True)

    assert "Shard the backbone as a whole" in refused["apart"]


def test_a_flattened_delta_is_not_saved(trained):
    refused = torch.load(trained / "refusals.pt", weights_only=True)

    assert "summon_full_params" in refused["flattened"]
    assert not (trained / "fsdp" / KINDS[0] / "flattened").exists()


def test_a_quantised_backbone_trains_sharded_as_in_one_process_but_for_its_codes(trained):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    result = torch.load(trained / "quantised" / "result.pt", weights_only=True)
    alone, fresh = quantised(), quantised()
    put_on(alone, "lora", train=HEADED)

    assert train_plainly(alone, STEPS) == pytest.approx(result["losses"], abs=TOLERANCE)
    AutoDeltaModel.from_finetuned(trained / "quantised" / "delta", backbone_model=fresh)
    assert torch.equal(result["logits"], answers(fresh))
    assert "is quantised (torch.uint8 codes) and sharded" in result["refused"]
    assert not (trained / "quantised" / "whole").exists()


def test_a_model_that_is_split_over_processes_is_refused(trained):
    refused = torch.load(trained / "refusals.pt", weights_only=True)

    assert "embed_tokens.weight is split over processes (tensor parallelism)" in refused["parallel"]
