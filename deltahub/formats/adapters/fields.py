"""The supported fields of the configs of `adapters`; an adapter with any other field set is refused.

A field is *used* by a reader, or *inert*: its value cannot change the outputs of a saved adapter. Every other field, in any release
of `adapters`, must be off: null, false, zero or empty.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from deltahub.errors import ConfigError
from deltahub.files.documents import shown

BOTTLENECK: Final = "bottleneck"  # the name here of what has no architecture there
UNION: Final = "union"
_COMMON: Final = frozenset({"architecture", "init_weights", "init_weights_seed", "leave_out"})
_TRAINING: Final = frozenset({"dropout", "stochastic_depth"})  # off in a saved adapter until it is trained on
# By architecture; the comments say why a field is inert.
_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    BOTTLENECK: _COMMON
    | _TRAINING
    | {
        "adapter_residual_before_ln",  # used only with `ln_after`
        "cross_adapter",
        "factorized_phm_W",
        "factorized_phm_rule",
        "hypercomplex_nonlinearity",  # for an initialisation, as are `phm_c_init` and `phm_init_range`
        "inv_adapter",
        "inv_adapter_reduction_factor",
        "is_parallel",
        "learn_phm",
        "mh_adapter",
        "non_linearity",
        "original_ln_after",
        "original_ln_before",
        "output_adapter",
        "phm_bias",
        "phm_c_init",
        "phm_dim",
        "phm_init_range",
        "phm_layer",
        "phm_rank",
        "reduction_factor",
        "residual_before_ln",
        "scaling",
        "shared_phm_rule",
    },
    "lora": _COMMON
    | {
        "alpha",
        "attn_matrices",
        "composition_mode",
        "dropout",
        "intermediate_lora",
        "output_lora",
        "r",
        "selfattn_lora",
        "use_dora",
    },
    "prefix_tuning": _COMMON
    | _TRAINING
    | {
        "bottleneck_size",
        "cross_prefix",  # for encoder-decoders, as is the next one
        "encoder_prefix",
        "flat",
        "non_linearity",
        "prefix_length",
        "shared_gating",  # used only with `use_gating`
    },
    "reft": _COMMON
    | {
        "dropout",
        "dtype",  # of the parameters while they train
        "layers",
        "non_linearity",
        "orthogonality",
        "output_reft",
        "prefix_positions",
        "r",
        "suffix_positions",
        "tied_weights",
    },
    UNION: frozenset({"architecture"}),
}
_ARCHITECTURES: Final[Mapping[str, str]] = {
    "mtl_lora": "it mixes the LoRAs of several tasks",
    "prompt_tuning": "a soft prompt here gives other outputs than the prompt of adapters",
}
_FIELDS: Final[Mapping[str, str]] = {
    "ln_after": "it normalises the result of the bottleneck",
    "ln_before": "it normalises the input of the bottleneck",
    "shared_W_phm": "its layers share their weights",
    "use_gating": "a gate computed from the input scales its result",
    "vera_b": "it is a VeRA, whose matrices are drawn at random when it is loaded",
    "vera_d": "it is a VeRA, whose matrices are drawn at random when it is loaded",
}
# Fields with a single supported value that is not off.
_REQUIRED: Final[Mapping[str, tuple[Any, str]]] = {
    "original_ln_after": (True, "it leaves out the residual connection and the LayerNorm after it"),
}
_RELEASE: Final = re.compile(r"adapters\.[01]\.")
WAY_OUT: Final = "Load it with adapters: model.load_adapter(...)."


def architecture(config: Mapping[str, Any]) -> str:
    """Return the architecture in a config."""
    return str(config.get("architecture") or BOTTLENECK)


def check_fields(document: Mapping[str, Any]) -> None:
    """Refuse a config of `adapters` with any field set that no reader supports.

    Args:
        document: the content of `adapter_config.json`.

    Raises:
        ConfigError: a field is set that is not supported; the message says which, and the way out.
    """
    version = check_release(document)
    config = document["config"]
    if architecture(config) != UNION:
        _check_method(config, version)
        return
    configs = config.get("configs")
    if not isinstance(configs, list) or not configs or not all(isinstance(each, dict) for each in configs):
        msg = f"The adapter is a union with configs={shown(configs)}; expected a list of the configs of its methods. Fetch it again."
        raise ConfigError(msg)
    _check_method({key: value for key, value in config.items() if key != "configs"}, version)
    for each in configs:
        _check_method(each, version, _KNOWN.keys() - {UNION})


def check_release(document: Mapping[str, Any]) -> object:
    """Return the release in a config of `adapters`, after checking that it is one of 1.x.

    Raises:
        ConfigError: it is another one.
    """
    version = document.get("version")
    if not _RELEASE.match(str(version)):
        msg = (
            f"The adapter was saved by {'an unknown release' if version is None else f'release {shown(version)}'}; expected adapters 1.x. "
            "Load it with adapters and save it again."
        )
        raise ConfigError(msg)
    return version


def _check_method(config: Mapping[str, Any], version: object, kinds: Collection[str] = _KNOWN) -> None:
    """Refuse an architecture that is not known, and a field that no reader of it supports.

    Args:
        kinds: the architectures to accept.

    Raises:
        ConfigError: one is.
    """
    kind = architecture(config)
    if kind not in kinds:
        reason = _ARCHITECTURES.get(kind, "this architecture is not supported here")
        raise ConfigError(f"The adapter has architecture={shown(kind)}: {reason}. {WAY_OUT}")
    for key, value in config.items():
        required, reason = _REQUIRED.get(key, (value, ""))
        if key not in (*_KNOWN[kind], *_REQUIRED) and value not in (None, False, "") and value not in ([], {}):
            reason = _FIELDS.get(key, f"this field of {version} is not supported")
        elif value == required:
            continue
        if reason:
            raise unsupported(kind, key, value, reason)


def unsupported(kind: str, key: str, value: Any, reason: str) -> ConfigError:
    """Return the error for a value that no delta can have.

    Args:
        kind: the architecture.
        reason: a clause.
    """
    return ConfigError(f"The adapter is a {kind} with {shown(key)[1:-1]}={shown(value)}: {reason}. {WAY_OUT}")
