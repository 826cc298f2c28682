"""Coverage of architectures: every delta type on every model type of transformers that can be made tiny and run on a CPU.

Each delta type with its defaults is added, randomised, must change the output, is saved, loaded on a fresh copy with
bit-identical outputs, and removed, after which the output must be bit-identical to the backbone's own.

    python benchmarks/coverage.py [--only bert,gpt2] [--type vera,reft] [--jobs 2]      writes docs/coverage.md when run over all
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

import tiny
import torch
from coverage_table import WITHOUT_DEFAULTS, print_summary, write_table
from torch import Tensor, nn

from deltahub import AutoDeltaModel
from deltahub.engine.structure.names import StructureMap
from deltahub.handle.base import delta_classes

SECONDS: Final = 90  # for one model
MEMORY: Final = 14 << 30
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "adapter": {"bottleneck_dim": 4},
    "parallel_adapter": {"bottleneck_dim": 4},
    "lora": {"lora_r": 2},
    "low_rank_adapter": {"reduction_factor": 4},
    "compacter": {"reduction_factor": 4},
    "prefix": {"prefix_token_num": 3, "embed_dim": 8, "mid_dim": 8},
    "soft_prompt": {"soft_token_num": 3},
    "weight_update": {"method": "loha", "options": {"r": 2}},
}


@dataclass
class Outcome:
    """The results of one model type.

    Attributes:
        structure: ``explicit``, ``inferred``, ``both`` or ``none``.
        named: which of attn, attn.q, attn.v, ff.w1, ff.w2 have a name in its map.
        problem: why the model itself could not be tried, else empty.
        results: delta type to ``ok`` or why not.
    """

    model_type: str
    class_name: str = ""
    structure: str = "none"
    named: list[str] = field(default_factory=list)
    problem: str = ""
    results: dict[str, str] = field(default_factory=dict)


def try_model(model_type: str, delta_types: Sequence[str]) -> Outcome:
    """Try delta types on one model type."""
    outcome = Outcome(model_type)
    try:
        model = tiny.make(model_type)
        outcome.class_name = type(model).__name__
        inputs = tiny.working_inputs(model)
    except Exception as error:  # noqa: BLE001  # whatever it is belongs in the table
        outcome.problem = _reason(error)
        return outcome
    structure = StructureMap.of(model)
    outcome.structure = {
        (True, True): "both",
        (True, False): "explicit",
        (False, True): "inferred",
        (False, False): "none",
    }[bool(structure.roots), structure.inferred]
    outcome.named = sorted(_named(model, structure))
    expected = tiny.output_of(model, inputs)
    for delta_type in delta_types:
        fresh = tiny.copy_of(model)
        try:
            outcome.results[delta_type] = _try_delta(delta_type, fresh, tiny.copy_of(model), inputs, expected)
        except Exception as error:  # noqa: BLE001
            outcome.results[delta_type] = _reason(error)
    return outcome


def _named(model: nn.Module, structure: StructureMap) -> set[str]:
    wanted = {"attn", "attn.q", "attn.v", "attn.qkv", "ff.w1", "ff.w2", "ff"}
    return {
        tail
        for name, _ in model.named_modules()
        if name
        for common, _ in structure.variants(name)
        for depth in (1, 2)
        if (tail := ".".join(common.replace("@", "").split(".")[-depth:])) in wanted and "@" in common
    }


def _try_delta(delta_type: str, model: nn.Module, other: nn.Module, inputs: dict[str, Any], expected: Tensor) -> str:
    config = {"delta_type": delta_type, **OPTIONS.get(delta_type, {})}
    if delta_type in ("low_rank_adapter", "compacter"):
        config["modified_modules"] = None
    delta = AutoDeltaModel.from_config(config, model)
    delta.freeze_module()
    if not any(True for _ in delta.parameters()):
        return "inserted nothing"
    _stir(delta)
    changed = tiny.output_of(model, inputs)
    if changed.shape == expected.shape and torch.equal(expected, changed):
        return "does not change the output"
    with tempfile.TemporaryDirectory() as folder:
        delta.save_finetuned(folder)
        AutoDeltaModel.from_finetuned(folder, backbone_model=other)
    if not torch.equal(changed, tiny.output_of(other, inputs)):
        return "loaded, it computes something else"
    delta.detach()
    if not torch.equal(expected, restored := tiny.output_of(model, inputs)):
        return f"detached, it leaves a trace of {(restored - expected).abs().max():.1g}"
    return "ok"


def _stir(delta: Any) -> None:
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


# ----- one process for each model, so that none can hang or bring down the rest -----


def _work(model_type: str, delta_types: Sequence[str], answer: Connection) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answer.send(asdict(try_model(model_type, delta_types)))


def outcomes(model_types: Sequence[str], delta_types: Sequence[str], jobs: int) -> Iterator[Outcome]:
    """Yield the outcome of each type, in the order of completion."""
    context = multiprocessing.get_context("fork")  # what is imported stays imported
    waiting, running = list(model_types), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(model_type := waiting.pop(0), delta_types, sender))
            process.start()
            sender.close()
            running[receiver] = (model_type, process, time.monotonic())
        for receiver in wait(list(running), timeout=0.2):
            model_type, process, _ = running.pop(receiver)  # type: ignore[call-overload]
            try:
                yield Outcome(**receiver.recv())  # type: ignore[union-attr]
            except EOFError:
                yield Outcome(model_type, problem="its process died")
            process.join()
        for receiver, (model_type, process, start) in list(running.items()):
            if time.monotonic() - start > SECONDS:
                process.kill()
                process.join()
                del running[receiver]
                yield Outcome(model_type, problem=f"took more than {SECONDS} s")


def main() -> None:
    """Print the table and, over all types, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="model types, with commas between")
    parser.add_argument("--type", default="", help="delta types, with commas between")
    parser.add_argument("--jobs", type=int, default=1, help="how many models at once")
    parser.add_argument("--json", type=Path, help="write all that was found to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known_types = sorted({*delta_classes()} - {*WITHOUT_DEFAULTS})
    delta_types = arguments.type.split(",") if arguments.type else known_types
    if unknown_types := set(delta_types) - set(known_types):
        parser.error(f"no delta type {', '.join(sorted(unknown_types))}; there are {', '.join(known_types)}")
    types = arguments.only.split(",") if arguments.only else tiny.model_types()
    found = []
    for number, outcome in enumerate(outcomes(types, delta_types, arguments.jobs), 1):
        found.append(outcome)
        failed = {key: value for key, value in outcome.results.items() if value != "ok"}
        line = outcome.problem or ("ok" if not failed else "; ".join(f"{k}: {v}" for k, v in failed.items()))
        print(f"[{number}/{len(types)}] {outcome.model_type}: {line}", flush=True)
    found.sort(key=lambda outcome: outcome.model_type)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in found], indent=1))
    print_summary(found)
    if not arguments.only and not arguments.type:
        write_table(found, Path(__file__).parents[1] / "docs" / "coverage.md")


if __name__ == "__main__":
    sys.exit(main())
