"""What each of two processes does in the tests of DDP and FSDP2: train every kind of delta on its half of each batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM
from transformers.distributed import DistributedConfig

from deltahub import AutoDeltaModel, LoraModel
from deltahub.errors import ConfigError
from tests.backbones import bert, llama, stir
from tests.training.matrix import HEADED, KINDS, answers, put_on, train_plainly

WORLD = 2
STEPS = 3
SHARDED_AS_A_WHOLE = {"prefix"}  # the network in its first attention is needed by the others


def train_everywhere(rank: int, folder: Path) -> None:
    """Train each kind under each framework; rank 0 leaves the losses and the delta in `folder/framework/kind`."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=WORLD)
    try:
        for kind in KINDS:
            under_ddp(rank, folder / "ddp" / kind, kind)
            under_fsdp(rank, folder / "fsdp" / kind, kind)
        if find_spec("bitsandbytes"):
            under_fsdp_quantised(rank, folder / "quantised")
        refused, merged = (
            refusals(folder / "fsdp" / KINDS[0] / "delta"),
            merge_sharded(),
        )  # sharding needs all processes
        if rank == 0:
            torch.save(refused, folder / "refusals.pt")
            torch.save(merged, folder / "merged.pt")
    finally:
        dist.destroy_process_group()


def half_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of a batch that are this process's."""
    return {key: tensor.chunk(WORLD)[dist.get_rank()] for key, tensor in batch.items()}


def mean_over_processes(losses: list[float]) -> list[float]:
    """The losses of whole batches."""
    mean = torch.tensor(losses)
    dist.all_reduce(mean)
    return (mean / WORLD).tolist()


def under_ddp(rank: int, folder: Path, kind: str) -> None:
    """Wrap after the delta is on; every process holds all of it, so one saves it."""
    backbone = bert()
    delta = put_on(backbone, kind, train=HEADED)
    losses = mean_over_processes(train_plainly(backbone, STEPS, call=DistributedDataParallel(backbone), share=half_of))
    if rank == 0:
        delta.save_finetuned(folder / "delta")
        torch.save({"losses": losses, "logits": answers(backbone)}, folder / "result.pt")


def under_fsdp(rank: int, folder: Path, kind: str) -> None:
    """Shard after the delta is on; every process holds a part of it, so all of them save it together."""
    backbone = bert()
    delta = put_on(backbone, kind, train=HEADED)
    shard(backbone, blocks=kind not in SHARDED_AS_A_WHOLE)
    losses = mean_over_processes(train_plainly(backbone, STEPS, share=half_of))
    logits = answers(backbone)
    delta.save_finetuned(folder / "delta")
    assert (folder / "delta" / "delta_config.json").is_file(), f"rank {rank} went on before the delta was saved"
    results = {"losses": losses, "logits": logits}
    delta.detach()
    results["bare"] = answers_anew(backbone)
    delta.attach()
    results["again"] = answers_anew(backbone)
    train_plainly(backbone, 1, share=half_of)
    delta.load_checkpoint(folder / "delta" / "delta.safetensors")
    results["reloaded"] = answers_anew(backbone)
    if rank == 0:
        torch.save(results, folder / "result.pt")


def quantised() -> Any:
    """A backbone whose blocks are quantised to 4 bits by bitsandbytes."""
    import bitsandbytes as bnb

    backbone = bert()
    for name, layer in list(backbone.bert.encoder.named_modules()):
        if isinstance(layer, nn.Linear):
            codes = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, compute_dtype=torch.float32, quant_type="nf4"
            )
            codes.weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4", module=codes)
            codes.bias = layer.bias
            backbone.bert.encoder.set_submodule(name, codes)
    return backbone.to("cpu")


def under_fsdp_quantised(rank: int, folder: Path) -> None:
    """Shard a quantised backbone but for its codes; one whose codes are sharded too is not saved."""
    backbone = quantised()
    delta = put_on(backbone, "lora", train=HEADED)
    codes = {parameter for parameter in backbone.parameters() if not parameter.is_floating_point()}
    for block in backbone.bert.encoder.layer:
        fully_shard(block, ignored_params=codes.intersection(block.parameters()))
    fully_shard(backbone, ignored_params=codes)
    losses = mean_over_processes(train_plainly(backbone, STEPS, share=half_of))
    logits = answers(backbone)
    delta.save_finetuned(folder / "delta")
    other = quantised()
    whole = put_on(other, "lora")
    shard(other)
    refused = message_of(lambda: whole.save_finetuned(folder / "whole"))
    if rank == 0:
        torch.save({"losses": losses, "logits": logits, "refused": refused}, folder / "result.pt")


def parallel(folder: Path) -> Any:
    """A language model that transformers splits over the processes."""
    os.environ.update({"RANK": str(dist.get_rank()), "LOCAL_RANK": str(dist.get_rank()), "WORLD_SIZE": str(WORLD)})
    if dist.get_rank() == 0:
        llama().save_pretrained(folder)
    dist.barrier()
    return LlamaForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(tp_plan="auto"), dtype=torch.float32
    )


def shard(backbone: Any, *, blocks: bool = True) -> None:
    """Shard a BERT as FSDP2's manual says: every block by itself, then the rest; or all of it together."""
    for block in backbone.bert.encoder.layer if blocks else ():
        fully_shard(block)
    fully_shard(backbone)


def answers_anew(backbone: Any) -> Tensor:
    """The answers with parameters gathered from the parts; what an earlier forward gathered does not count."""
    backbone.reshard()
    return answers(backbone)


def merge_sharded() -> dict[str, Tensor]:
    """The answers of a sharded backbone with a delta, with it merged, and with it taken out again."""
    backbone = bert()
    delta = LoraModel(backbone, modified_modules=["query", "pooler.dense"])
    stir(delta)
    shard(backbone)
    results = {"before": answers(backbone)}
    delta.merge()
    results["merged"] = answers_anew(backbone)
    delta.unmerge()
    return {**results, "after": answers_anew(backbone)}


def refusals(saved: Path) -> dict[str, str]:
    """The messages for a delta that comes too late, one whose parts are sharded apart, a flattened one, and one on split layers.

    Args:
        saved: a delta of the first kind.
    """
    sharded, apart, flattened = bert(), bert(), bert()
    shard(sharded)
    put_on(apart, "prefix")
    shard(apart)
    delta = put_on(flattened, KINDS[0])
    FullyShardedDataParallel(flattened, use_orig_params=True, device_id=torch.device("cpu"))
    attempts: dict[str, Callable[[], object]] = {
        "new": lambda: put_on(sharded, KINDS[0]),
        "loaded": lambda: AutoDeltaModel.from_finetuned(saved, backbone_model=sharded),
        "apart": lambda: answers(apart),
        "flattened": lambda: delta.save_finetuned(saved.parent / "flattened"),
        "parallel": lambda: LoraModel(parallel(saved.parent / "parallel"), modified_modules=["q_proj"]),
    }
    return {name: message_of(attempt) for name, attempt in attempts.items()}


def message_of(attempt: Callable[[], object]) -> str:
    """The sentence that refuses something."""
    try:
        attempt()
    except ConfigError as error:
        return str(error)
    return "not refused"
