"""A saved delta in words for people: its method, its modules, how many of its values are fixed, and how its backbone is quantised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.checkpoint.default_name import method_of
from deltahub.checkpoint.manifest import DELTA_PART

# Parts of the names of tensors that are saved with a delta and never train.
_FIXED: Final = {
    "adalora": ("lora_kept",),
    "fusion": ("members",),
    "vera": ("vera_A", "vera_B"),
    "weight_update": ("places",),
}
_RULES: Final = ("phm_rule", "phm_rule_left", "phm_rule_right")  # of a compacter that does not learn them


def method_title(config: Mapping[str, Any]) -> str:
    """Return the type of a delta, with its variant or its parts: ``"weight_update (loha)"``, ``"union (lora, prefix)"``."""
    kind = str(config["delta_type"]) if "delta_type" in config else method_of(config)
    details: list[str] = [method_title(part) for part in _parts(config)]
    if kind == "weight_update" and config.get("method"):
        details = [str(config["method"])]
    elif kind == "lora" and config.get("use_dora"):
        details = ["dora"]
    elif kind == "reft" and not config.get("orthogonality", True):
        details = ["noreft" if config.get("subtract_projection", True) else "direft"]
    return f"{kind} ({', '.join(details)})" if details else kind


def module_addresses(config: Mapping[str, Any]) -> list[str]:
    """Return the addresses of the modules of a delta; those of each part with its method: ``"lora: attn.q attn.v"``."""
    own = [str(name) for name in config.get("modified_modules") or ()]
    return own + [f"{part.get('delta_type')}: {' '.join(module_addresses(part))}" for part in _parts(config)]


def fixed_values(config: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Count the values of a delta that are saved with it and never train.

    Args:
        config: the config of the delta.
        sizes: the number of values of each tensor, by name.
    """
    if "delta_package" in config:
        return 0
    names = {name for part in (config, *_parts(config)) for name in _fixed_names(part)}
    leaves = ((f".{name}".partition(DELTA_PART)[2], size) for name, size in sizes.items())
    return sum(size for leaf, size in leaves if not names.isdisjoint(leaf.split(".")))


def quantisation_text(backbone: Fingerprint) -> str:
    """Describe how the weights of a recorded backbone are quantised; empty for a dense one."""
    kinds = Counter((weight.quantisation.method, weight.quantisation.bits) for weight in backbone.quantised)
    texts = [f"{method}{f', {bits} bits' if bits else ''}, {count} weights" for (method, bits), count in kinds.items()]
    return "; ".join(texts) or ("of an unknown kind" if backbone.is_quantised else "")


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for part in config.get("parts") or ():
        if isinstance(part, Mapping):
            yield part


def _fixed_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    kind = str(config.get("delta_type"))
    return _RULES if kind == "compacter" and not config.get("learn_phm", True) else _FIXED.get(kind, ())
