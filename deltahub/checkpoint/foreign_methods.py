"""Methods of other libraries that are kept in a registry and cannot be loaded here, told without torch by their names.

A folder is published whatever its method, so that a registry can keep what a later release loads; this says beforehand what will be
refused. The formats refuse by more than the name when they load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from deltahub.files.documents import shown
from deltahub.text.suggestions import closest

PEFT_TYPES: Final = frozenset(
    {
        *("ADALORA", "BEFT", "BOFT", "C3A", "CARTRIDGE", "CPT", "DEFT", "DELORA", "FOURIERFT", "GLORA", "GRALORA", "HIRA", "HRA"),
        *("IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "MULTITASK_PROMPT_TUNING", "OFT", "OSF", "P_TUNING"),
        *("PREFIX_TUNING", "PROMPT_TUNING", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TRAINABLE_TOKENS", "UNILORA"),
        *("VBLORA", "VERA", "WAVEFT"),
    }
)  # fmt: skip
REFUSED_PEFT_TYPES: Final[Mapping[str, str]] = {
    "ADAMSS": "its file does not tell which rows form a group",
    "ADAPTION_PROMPT": "it changes what an attention computes, by a gate for each layer",
    "FROD": "its file does not hold the directions that it computed from the weights",
    "LILY": "its update depends on the input",
    "PEANUT": "its update is a network of the weight",
    "POLY": "every call has to choose from its tasks",
    "PSOFT": "it depends on signs of singular vectors that its file does not hold",
    "SHADOW": "it runs a second model beside the backbone",
    "TINYLORA": "it depends on signs of singular vectors that its file does not hold",
    "XLORA": "its update depends on the input",
}
ADAPTERS_ARCHITECTURES: Final = frozenset({"bottleneck", "fusion", "lora", "prefix_tuning", "reft", "union"})
REFUSED_ARCHITECTURES: Final[Mapping[str, str]] = {
    "mtl_lora": "it mixes the LoRAs of several tasks",
    "prompt_tuning": "a soft prompt here gives other outputs than the prompt of adapters",
}
OPENDELTA_TYPES: Final = frozenset(
    {"adapter", "bitfit", "compacter", "lora", "low_rank_adapter", "parallel_adapter", "prefix", "soft_prompt"}
)
_KNOWN: Final[Mapping[str, tuple[str, frozenset[str], Mapping[str, str]]]] = {
    "peft": ("PEFT 0.21", PEFT_TYPES, REFUSED_PEFT_TYPES),
    "adapters": ("adapters 1.3", ADAPTERS_ARCHITECTURES, REFUSED_ARCHITECTURES),
    "opendelta": ("OpenDelta 0.3.2", OPENDELTA_TYPES, {}),
    "gguf": ("llama.cpp", frozenset({"lora"}), {}),
}


def why_not_loaded(config: Mapping[str, Any]) -> str:
    """Return a sentence on why a delta of another library cannot be loaded here, by its method; empty if nothing is known.

    Args:
        config: the config of its manifest.
    """
    if config.get("format") not in _KNOWN:
        return ""
    library, loaded, refused = _KNOWN[config["format"]]
    method = str(config.get("peft_type") or config.get("method") or "")
    is_old = config["format"] == "adapters" and "adapters_version" not in config  # methods had other names
    if not method or method in loaded or is_old:
        return ""
    if method in refused:
        return f"DeltaHub keeps it, and does not load a {method} of {library}: {refused[method]}."
    near = closest(method, (*loaded, *refused), limit=1, cutoff=0.6) or closest(method.upper(), loaded, limit=1)
    nearest = f" The nearest is {near[0]}; correct its config if that is meant." if near else ""
    return f"DeltaHub keeps it, and cannot load it: {library} has no method {shown(method)}.{nearest}"
