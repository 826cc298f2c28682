"""Scaling a delta: its update times a factor.

A LoRA keeps its tensors, and its alpha is scaled. BitFit, LayerNorm tuning and token rows have updates that are linear in their parameters,
IA3 in its parameters less one. Any other method keeps its tensors, and the strength in its config is multiplied; methods that cannot act
by a share are refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltahub.algebra.agreement import common_facts, common_record, options_of, unfrozen
from deltahub.algebra.combine import combined
from deltahub.algebra.methods import Method, Recipe
from deltahub.algebra.opening import open_operands
from deltahub.algebra.operand import Operand, computable
from deltahub.algebra.result import SCALED, Computed, Written, check_folder, written
from deltahub.algebra.trained import FIRST, trained_tensors
from deltahub.checkpoint.strength import strength_fault
from deltahub.errors import ConfigError

_LINEAR = ("bitfit", "ia3", "layer_norm", "token_rows")


def scale(
    delta: str | os.PathLike[str],
    factor: float,
    to: str | os.PathLike[str],
    *,
    heads: str | None = None,
    force: bool = False,
) -> Written:
    """Write a delta whose update is `factor` times that of another.

    Args:
        delta: a folder, a reference or a link.
        factor: a finite number other than zero; a negative one takes away what was learned.
        to: the folder to write, which is new or empty.
        heads: ``"first"`` to keep tensors that were trained as a whole as they are; by default they are refused, as they
            cannot be scaled without the backbone.
        force: replace a delta in `to`.

    Raises:
        ConfigError: the factor is invalid, or the method cannot act by a share.
        CheckpointError: the delta is damaged, or `to` holds something.
        StorageError: the disk is full or not writable; nothing is left.
    """
    folder = Path(to).expanduser()
    check_folder(folder, force=force)
    operands = open_operands([delta])
    computed = scaled(operands[0], factor, heads)
    parameters = {"factor": float(factor), **({"heads": heads} if heads else {})}
    about = f"Scaled by {factor:.6g}."
    return written(folder, computed, operands, SCALED, {"operation": "scale", "parameters": parameters}, about)


def scaled(operand: Operand, factor: float, heads: str | None = None) -> Computed:
    """Compute a scaled delta without writing it: see `scale`."""
    if not math.isfinite(factor) or not factor:
        msg = f"The factor is {factor}; expected a finite number other than zero."
        raise ConfigError(msg)
    if operand.trained and heads != FIRST:
        name = min(operand.trained)
        msg = (
            f"{operand.label} trained {name} as a whole, and holds its value, which cannot be scaled without the backbone's. Keep such tensors "
            "as they are with heads='first' (--heads first)."
        )
        raise ConfigError(msg)
    strength = float(operand.document.get("strength", 1.0))
    if operand.delta_type in _LINEAR and strength == 1:
        return combined([operand], Recipe(Method.LINEAR, (factor,)))
    if operand.delta_type == "lora" and not operand.document.get("use_dora"):
        operand = computable(operand)
        for place in operand.places:
            operand.factors(place)  # refuses tensors that do not fit the config
        changed = _scaled_alphas(operand.document, factor)
    elif fault := strength_fault(operand.document):
        msg = f"{operand.label} cannot be scaled: {fault}."
        raise ConfigError(msg)
    else:
        changed = {"strength": strength * factor}
    tensors = {name: operand.tensor(name) for name in sorted(operand.own)}
    options = {"delta_type": operand.delta_type, **options_of(operand), **changed}
    facts = {"unfrozen_modules": unfrozen([operand]), **common_facts([operand])}
    tensors |= trained_tensors([operand], (1.0,), heads)
    return Computed({**options, **facts}, tensors, common_record([operand]))


def _scaled_alphas(document: Mapping[str, Any], factor: float) -> dict[str, Any]:
    alphas = document.get("alpha_pattern") or {}
    scaled_alpha = float(document.get("lora_alpha", 16)) * factor
    patterns = {"alpha_pattern": {name: float(alpha) * factor for name, alpha in alphas.items()}} if alphas else {}
    return {"lora_alpha": scaled_alpha, **patterns}
