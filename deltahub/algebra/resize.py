"""Changing the rank of a LoRA: each update becomes its best approximation of a lower rank, or keeps a share of its norm."""

from __future__ import annotations

import os
from pathlib import Path

from deltahub.algebra.combine import Report, combined
from deltahub.algebra.methods import Method, Recipe, check_size
from deltahub.algebra.opening import open_operands
from deltahub.algebra.operand import Operand, refuse_more_than_factors
from deltahub.algebra.result import RESIZED, Computed, Written, check_folder, written
from deltahub.errors import ConfigError


def resize(
    delta: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    force: bool = False,
    report: Report | None = None,
) -> Written:
    """Write a LoRA with another rank; tensors that were trained as a whole are kept.

    Args:
        delta: a folder, a reference or a link.
        to: the folder to write, which is new or empty.
        rank: the largest rank of each update; an update of a lower rank keeps its own, which loses nothing.
        energy: the share of each update's squared norm to keep, more than 0 and at most 1; the smallest rank that keeps it is taken.
        force: replace a delta in `to`.
        report: called with the number of modules done, and of all.

    Returns:
        The folder, its digest, and the rank and error of each module.

    Raises:
        ConfigError: neither or an invalid size is given, or the delta is not a LoRA or is a DoRA.
        CheckpointError: the delta is damaged, or `to` holds something.
        StorageError: the disk is full or not writable; nothing is left.
    """
    if rank is None and energy is None:
        msg = "resize takes a rank (--rank) or the share of the squared norm to keep (--energy), such as 0.99."
        raise ConfigError(msg)
    check_size(rank, energy)
    folder = Path(to).expanduser()
    check_folder(folder, force=force)
    operands = open_operands([delta])
    computed = resized(operands[0], rank, energy, report)
    sizes = {key: value for key, value in (("rank", rank), ("energy", energy)) if value is not None}
    about = "Resized to " + " and ".join(f"{key} {value}" for key, value in sizes.items()) + "."
    return written(folder, computed, operands, RESIZED, {"operation": "resize", "parameters": sizes}, about)


def resized(operand: Operand, rank: int | None, energy: float | None, report: Report | None = None) -> Computed:
    """Compute a resized delta without writing it: see `resize`."""
    refuse_more_than_factors(operand, "resized")
    if operand.delta_type != "lora":
        msg = f"{operand.label} is a {operand.delta_type}, which has no rank. Only a LoRA can be resized."
        raise ConfigError(msg)
    return combined([operand], Recipe(Method.LINEAR, (1.0,), rank, energy), report=report)
