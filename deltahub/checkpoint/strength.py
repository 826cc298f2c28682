"""The strength of a saved delta: set in its config, or expressed in the alpha of a LoRA, which every other format has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from deltahub.errors import ConfigError

_WITHOUT: Final = ("prefix", "soft_prompt", "reft")  # a share of positions, keys or single tokens is not defined


def without_strength(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of a delta with its strength multiplied into the alphas of its LoRA.

    Args:
        document: the config.

    Raises:
        ConfigError: it has a strength other than 1 and is not a plain LoRA.
    """
    strength = float(document.get("strength", 1.0))
    if strength == 1.0:
        return document
    if document.get("delta_type") != "lora" or document.get("use_dora"):
        kind = "DoRA" if document.get("use_dora") else document.get("delta_type")
        msg = (
            f"The delta has a strength of {strength:g}, which only DeltaHub keeps for a {kind}. Set it to 1 with delta.scale(1.0) and save it again, "
            "or load it and convert it with as_lora."
        )
        raise ConfigError(msg)
    plain = {key: value for key, value in document.items() if key != "strength"}
    plain["lora_alpha"] = float(document.get("lora_alpha", 16)) * strength
    if alphas := document.get("alpha_pattern"):
        plain["alpha_pattern"] = {address: float(alpha) * strength for address, alpha in alphas.items()}
    return plain


def strength_fault(document: Mapping[str, Any]) -> str:
    """Return why a saved delta cannot act by a share, as a clause; empty if it can."""
    if "delta_package" in document:
        return (
            f"its type comes from the package {document['delta_package']}, which alone knows whether it has a strength"
        )
    kinds = [document["delta_type"], *(part.get("delta_type") for part in document.get("parts", ()))]
    if kind := next((kind for kind in kinds if kind in _WITHOUT), None):
        return f"a {kind} has no strength: a share of what it adds, such as positions, keys or single tokens, is not defined"
    return ""
