"""The fingerprint of a model of BERT-base size beside OpenDelta's md5 over the same tensors, and the memory that it takes."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys

import torch
from measure import OUT, interleaved, report
from torch import nn
from transformers import BertConfig, BertModel

from deltahub.engine.fingerprint import fingerprint

ROUNDS = 7
_MEMORY_LIMIT_MB = 64


def opendelta_md5(model: nn.Module) -> str:
    """What OpenDelta does with every parameter."""
    digest = hashlib.md5(usedforsecurity=False)
    for parameter in model.parameters():
        digest.update(parameter.data.cpu().numpy().tobytes())
    return digest.hexdigest()


def peak_megabytes() -> float:
    """The largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def extra_memory(dtype: str) -> None:
    """Print how far a fingerprint raises the peak of this process, in MB; a first small one warms up."""
    fingerprint(nn.Linear(8, 8))
    model = BertModel(BertConfig()).to(getattr(torch, dtype))
    before = peak_megabytes()
    fingerprint(model)
    print(f"{peak_megabytes() - before:.1f}")


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    model = BertModel(BertConfig()).eval()
    size = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
    variants = {
        "deltahub fingerprint": lambda: lambda: fingerprint(model),
        "opendelta md5": lambda: lambda: opendelta_md5(model),
    }
    times = interleaved(variants, ROUNDS)
    report(f"Fingerprint of {size:.2f} GB in memory, CPU time", times, "opendelta md5")
    OUT.print(
        f"Throughput: {size / times['deltahub fingerprint']:.1f} GB/s against {size / times['opendelta md5']:.2f}"
    )
    for dtype in ("float32", "bfloat16"):
        command = [sys.executable, __file__, dtype]
        extra = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        OUT.print(f"Extra peak memory in {dtype}: {extra} MB (limit {_MEMORY_LIMIT_MB})")
    OUT.print("")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        extra_memory(sys.argv[1])
    else:
        main()
