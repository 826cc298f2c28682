"""Command `resize`."""

from __future__ import annotations

from .combine import DeltaArg, EnergyOpt, ForceOpt, RankOpt, ToOpt, print_written
from .options import JsonOpt, QuietOpt
from .output import Output


def resize(
    delta: DeltaArg,
    to: ToOpt,
    rank: RankOpt = None,
    energy: EnergyOpt = None,
    force: ForceOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Write a LoRA with a lower rank: each update becomes its best approximation.

    [dim]deltahub resize acme/ner --rank 4 --to ./small[/dim]

    [dim]deltahub resize ./ckpt --energy 0.99 --to ./small[/dim]
    """
    from deltahub.algebra.resize import resize as compute

    out = Output(as_json=json, quiet=quiet)
    with out.counting("Resizing", "modules") as report:
        result = compute(delta, to, rank=rank, energy=energy, force=force, report=report)
    print_written(out, result)
