"""The fingerprint of a model of BERT-base size beside OpenDelta's md5 over the same tensors, and the memory that it takes."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import torch
from measure import OUT, interleaved, report
from torch import nn
from transformers import BertConfig, BertModel

from deltahub.engine.fingerprint import fingerprint

ROUNDS = 7
_MEMORY_LIMIT_MB = 64


def opendelta_md5(model: nn.Module) -> str:
    """Compute the hash of the parameters as OpenDelta does."""
    digest = hashlib.md5(usedforsecurity=False)
    for parameter in model.parameters():
        digest.update(parameter.data.cpu().numpy().tobytes())
    return digest.hexdigest()


def megabytes(field: str) -> float:
    """Read a field of this process's memory status: VmRSS is the current size, VmHWM the peak."""
    status = Path("/proc/self/status").read_text("utf-8")
    return float(re.search(rf"{field}:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def extra_memory(kind: str) -> None:
    """Print how far above its start the memory of this process rises during a fingerprint, in MB."""
    fingerprint(nn.Linear(8, 8))
    model: nn.Module = BertModel(BertConfig())
    if kind == "transposed":
        for parameter in model.parameters():
            parameter.data = parameter.data.T.contiguous().T if parameter.dim() == 2 else parameter.data
    else:
        model = model.to(getattr(torch, kind))
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the highest so far is forgotten
    before = megabytes("VmRSS")
    fingerprint(model)
    print(f"{megabytes('VmHWM') - before:.1f}")


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
    for kind in ("float32", "bfloat16", "transposed"):
        command = [sys.executable, __file__, kind]
        extra = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        OUT.print(f"Extra peak memory, {kind}: {extra} MB (limit {_MEMORY_LIMIT_MB})")
    OUT.print("")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        extra_memory(sys.argv[1])
    else:
        main()
