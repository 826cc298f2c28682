"""DeepSpeed with two processes: what ZeRO-2 and ZeRO-3 train is what one process trains, and it loads in this one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from deltahub import AutoDeltaModel
from tests.backbones import bert
from tests.training.matrix import HEADED, answers, batches, optimizer_for, put_on, train_plainly
from tests.training.processes import STEPS, WORLD, half_of, mean_over_processes, message_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # both need what two processes trained

STAGES = (2, 3)
APART = Path(sys.prefix, "apart")  # where the Makefile installs DeepSpeed


def train_with_deepspeed(rank: int, folder: Path) -> None:
    """Train under each stage; rank 0 leaves the losses and the delta in `folder/stage`."""
    sys.path.append(str(APART))
    deepspeed = deepspeed_without_kernels()
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_SIZE": str(WORLD)})
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=WORLD)
    deepspeed.init_distributed("gloo")
    try:
        for stage in STAGES:
            result = train(deepspeed, stage, folder / str(stage) / "delta")
            if rank == 0:
                torch.save(result, folder / str(stage) / "result.pt")
    finally:
        dist.destroy_process_group()


def deepspeed_without_kernels() -> Any:
    """DeepSpeed on the CPU; its kernel for shared memory would be compiled for minutes."""
    os.environ.update({"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "GLOO_SOCKET_IFNAME": "lo"})
    import deepspeed

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    return deepspeed


def train(deepspeed: Any, stage: int, delta_folder: Path) -> dict[str, Any]:
    """Train, save, switch and reload a delta under a stage."""
    backbone = bert()
    delta = put_on(backbone, "lora", train=HEADED)
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    options = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": zero, "zero_allow_untested_optimizer": True}
    engine, *_ = deepspeed.initialize(
        model=backbone, optimizer=optimizer_for(backbone), config={**options, "zero_force_ds_cpu_optimizer": False}
    )
    losses = steps(engine, STEPS)
    if stage == 3 or dist.get_rank() == 0:
        delta.save_finetuned(delta_folder)
    dist.barrier()
    result: dict[str, Any] = {"losses": mean_over_processes(losses), "logits": outputs(engine)}
    with delta.off():
        result["bare"] = outputs(engine)
    if stage == 3:
        steps(engine, 1)
        delta.load_checkpoint(delta_folder / "delta.safetensors")
        result["reloaded"] = outputs(engine)
        result["refused"] = message_of(lambda: put_on(backbone, "lora"))
    return result


def steps(engine: Any, count: int) -> list[float]:
    """Train a few steps as DeepSpeed's manual says."""
    losses = []
    for batch in batches(count):
        loss = engine(**half_of(batch)).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def outputs(engine: Any) -> Tensor:
    """The answers of a partitioned model."""
    training = engine.training
    engine.eval()
    with torch.no_grad():
        logits: Tensor = engine(**next(batches(1))).logits
    engine.train(training)
    return logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes left, which are forks of this one."""
    if not (APART / "deepspeed").is_dir():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "DeepSpeed is not installed: `make test` does it"
        )
    folder = tmp_path_factory.mktemp("deepspeed")
    for stage in STAGES:
        (folder / str(stage)).mkdir()
    multiprocessing.start_processes(train_with_deepspeed, (folder,), nprocs=WORLD, start_method="fork")
    return folder


@pytest.mark.filterwarnings("ignore")  # of DeepSpeed, where it is imported
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_what_one_trains(stage, trained):
    alone, fresh = bert(), bert()
    delta = put_on(alone, "lora", train=HEADED)
    losses = train_plainly(alone, STEPS)
    result = torch.load(trained / str(stage) / "result.pt", weights_only=True)
    loaded = AutoDeltaModel.from_finetuned(trained / str(stage) / "delta", backbone_model=fresh)

    assert losses == pytest.approx(result["losses"], abs=1e-4)
    for name, tensor in delta.state_dict().items():
        assert torch.allclose(tensor, loaded.state_dict()[name], atol=1e-4), name
    assert torch.equal(result["logits"], answers(fresh))
    assert torch.allclose(answers(bert()), result["bare"], atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_partitioned_delta_reloads_and_a_partitioned_backbone_takes_no_more(trained):
    result = torch.load(trained / "3" / "result.pt", weights_only=True)

    assert torch.equal(result["logits"], result["reloaded"])
    assert "is partitioned by DeepSpeed ZeRO-3" in result["refused"]
