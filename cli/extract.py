"""Command `extract`."""

from __future__ import annotations

from typing import Annotated

import typer

from .combine import EnergyOpt, ForceOpt, RankOpt, ToOpt, print_written
from .options import JsonOpt, QuietOpt
from .output import Output

_Model = Annotated[str, typer.Argument(metavar="BASE", help="A model's folder, or its id in the cache.")]


def extract(
    base: _Model,
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The fine-tuned model: a folder, or an id in the cache.")
    ],
    to: ToOpt,
    rank: RankOpt = None,
    energy: EnergyOpt = None,
    force: ForceOpt = False,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Write a LoRA that turns BASE into TUNED, as far as its rank allows; the error of each module is printed.

    Both are read tensor by tensor from their safetensors files. Changes that no low rank can carry, of biases, norms, embeddings and new heads,
    are kept exactly, as trained tensors.

    [dim]deltahub extract ./bert ./bert-sst2 --rank 16 --to ./sst2[/dim]

    [dim]deltahub extract ./bert ./bert-sst2 --energy 0.9 --to ./sst2[/dim]
    """
    from deltahub.algebra.extract import extract as compute

    out = Output(as_json=json, quiet=quiet)
    with out.counting("Extracting", "tensors") as report:
        result = compute(base, tuned, to, rank=rank, energy=energy, force=force, report=report)
    print_written(out, result, "not in it")
