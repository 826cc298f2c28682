"""The check that every field of a PEFT config is understood; an adapter with any other field set is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from deltahub.errors import ConfigError
from deltahub.files.documents import shown
from deltahub.formats.peft.adapter_types import REFUSED, TYPES
from deltahub.formats.peft.lora_starts import check_start
from deltahub.log import LOGGER

_REASONS: Final[Mapping[str, str]] = {
    "alora_invocation_tokens": "it acts only after certain tokens (aLoRA)",
    "layer_replication": "it repeats layers of the backbone",
}
_COUNTS: Final = ("r", "layers_to_transform", "num_virtual_tokens", "num_transformer_submodules")

_MAY_BE_EMPTY: Final = {("OFT", "r"), ("SUPERTUNING", "r"), ("SUPERTUNING", "lora_alpha"), ("DEFT", "alpha")}


def check_fields(config: Mapping[str, Any]) -> None:
    """Refuse a config of PEFT with any field set that the reader does not support.

    Raises:
        ConfigError: a field is set that is not supported; the message says which, and the way out.
    """
    kind = config["peft_type"]
    if kind in REFUSED:
        msg = f"PEFT adapter type {kind} is not supported: {REFUSED[kind]}. Load it with PEFT."
        raise ConfigError(msg)
    if kind not in TYPES:
        msg = (
            f"PEFT adapter type {shown(kind)[1:-1]} is not supported. Supported: {', '.join(TYPES)}. Load it with PEFT."
        )
        raise ConfigError(msg)
    unknown = [key for key in config if key not in TYPES[kind].fields]
    for key in unknown:
        value = config[key]
        if value not in (None, False, "") and value not in ([], {}):
            version = config.get("peft_version")
            reason = _REASONS.get(key) or f"this field{f' of PEFT {version}' if version else ''} is not supported"
            msg = f"The adapter is a {kind} with {shown(key)[1:-1]}={shown(value)}: {reason}. Load it with PEFT."
            raise ConfigError(msg)
    if unknown:
        LOGGER.info("Fields of the adapter's config that are off and were passed over: %s", ", ".join(sorted(unknown)))
    if fractions := [key for key in _COUNTS if isinstance(config.get(key), float)]:  # JSON Schema takes 8.0 for a count
        setting = f"{fractions[0]}={config[fractions[0]]!r}"
        msg = f"The adapter is a {kind} with {setting}; expected a whole number, as PEFT writes it. Fetch it again."
        raise ConfigError(msg)
    _check_sizes(config)
    if (bias := config.get("bias") or "none") not in ("none", "all") and not bias.endswith("_only"):
        msg = f"The adapter is a {kind} with bias={bias!r}; expected none, all or lora_only. Load it with PEFT."
        raise ConfigError(msg)
    if kind in ("LORA", "ADALORA"):
        check_start(config.get("init_lora_weights", True))


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse a rank or a scale of nothing, except in the types where it has a meaning."""
    kind = config["peft_type"]
    empty = {"r": (None, 0), "alpha": (None,), "lora_alpha": (None,)}
    for key, values in empty.items():
        if key in config and config[key] in values and (kind, key) not in _MAY_BE_EMPTY:
            msg = f"The adapter is a {kind} with {key}={config[key]!r}; expected a number, as PEFT writes it. Fetch it again."
            raise ConfigError(msg)
    if kind != "ADALORA" and any(isinstance(rank, list) for rank in (config.get("rank_pattern") or {}).values()):
        msg = f"The adapter is a {kind} with a rank_pattern of lists; expected whole numbers, as PEFT writes them. Fetch it again."
        raise ConfigError(msg)
