"""The initialisations of PEFT's LoRA: those that leave the backbone as it is, those that can be recomputed, and the others, which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from deltahub.errors import ConfigError

# Initialisations that leave the backbone as it is: only the first values of A and B, which training replaced.
_HARMLESS_STARTS: Final = ("gaussian", "eva", "orthogonal")
REBUILT_STARTS: Final = ("pissa", "olora")  # `lora_reading` recomputes what they subtracted from the backbone
_LOST_STARTS: Final[Mapping[str, str]] = {
    "pissa_niter": "its SVD is a random approximation",
    "corda": "it needs the data that it was computed from",
    "lora_ga": "it needs the gradients that it was computed from",
    "loftq": "it needs the quantised backbone that it was computed with",
}


def check_start(start: Any) -> None:
    """Refuse an initialisation that changed the backbone's weights and cannot be recomputed.

    Raises:
        ConfigError: it is such an initialisation, or an unknown one.
    """
    if start in (True, False, None) or start in (*_HARMLESS_STARTS, *REBUILT_STARTS):
        return
    name = str(start).partition("_niter")[0] + ("_niter" if "_niter" in str(start) else "")
    if name in _LOST_STARTS:
        msg = (
            f"The adapter was initialised with init_lora_weights={start!r}, which changed the weights of its backbone, and {_LOST_STARTS[name]}: "
            "on the plain backbone it would give other outputs. Convert it to a plain LoRA in PEFT, where it was trained: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    else:
        msg = f"The adapter is a LORA with init_lora_weights={start!r}, which is not supported. Load it with PEFT."
    raise ConfigError(msg)
