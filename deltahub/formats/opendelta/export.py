"""Writer for OpenDelta's checkpoints: `config.json` and the pickle `pytorch_model.bin`, as OpenDelta 0.3.2 loads them.

OpenDelta fills a tensor that is missing with random values, and passes over a name that it does not know. So the addresses are full names,
one for each module, and what OpenDelta would compute otherwise, or not at all, is refused:

    its LoRA takes Linear layers only, and never one below `lm_head`
    its adapters find their width in a pass with `dummy_inputs`, which are tokens, and their activation in a short list
    its BitFit cannot save the bias of a layer that had none
    its prefix knows the attentions of five families

There is no `backbone_hash`: it covers the text that the reader's release of transformers prints for the model, and OpenDelta only logs
whether it is the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import torch

from deltahub.checkpoint.address import exact_addresses
from deltahub.checkpoint.checkpoint import CARD, Checkpoint
from deltahub.engine.site import Site
from deltahub.engine.structure.maps import MARK
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.delta_tensors import (
    Shares,
    Update,
    lora_update,
    model_of,
    of_one_rank,
    of_width,
    prefixed_attentions,
    refuse_unknown_options,
    require_bottlenecks,
    require_leaves,
    shares_of,
    spans_of,
    unshared,
)
from deltahub.formats.opendelta.limits import (
    AS_LORA,
    KEEP,
    POSITIONAL,
    activation,
    place_of_prefix,
    refuse_at_input,
    refuse_without_dummy_inputs,
    require_linear,
)
from deltahub.formats.opendelta.reading import CONFIG, WEIGHTS
from deltahub.formats.opendelta.tensor_names import name_of
from deltahub.formats.peft.adapter import by_part
from deltahub.formats.peft.lora_export import joined
from deltahub.formats.writing import card

Converted = tuple[dict[str, Any], list[str], Shares]  # options, modules that it is on, tensors by module
_VERSION: Final = "0.3.0"  # as OpenDelta 0.3.2 calls itself
_HEAD: Final = "lm_head"  # modules that OpenDelta leaves out by default
_NO_FORM: Final = {
    "adalora": "OpenDelta's only update of a weight is LoRA",
    "ia3": "OpenDelta has no IA3",
    "layer_norm": "OpenDelta has no LayerNorm tuning; its deltas can train whole modules beside them",
    "vera": "OpenDelta's only update of a weight is LoRA",
    "weight_update": "OpenDelta's only update of a weight is LoRA",
}
_COMPACTER: Final = (
    "factorized_phm",
    "factorized_phm_rule",
    "hypercomplex_division",
    "hypercomplex_nonlinearity",
    "learn_phm",
    "phm_c_init",
    "phm_init_range",
    "phm_rank",
    "reduction_factor",
    "use_bias_down_sampler",
    "use_bias_up_sampler",
)


def files(saved: Checkpoint, backbone: Backbone) -> dict[str, bytes]:
    """Return the files of a checkpoint of OpenDelta, by name.

    Raises:
        ConfigError: OpenDelta has no equivalent of this delta, or the backbone is needed; the message says which.
        CheckpointError: the tensors are not those that the config announces, or the backbone is not the one of the delta.
        FingerprintMismatch: the backbone has other values than the delta was trained on.
    """
    document = saved.document
    kind = document["delta_type"]
    if kind not in _WRITERS:
        reason = _NO_FORM.get(kind, "OpenDelta has no such method")
        raise ConfigError(f"This {kind} cannot be written for OpenDelta: {reason}. {KEEP}")
    refuse_unknown_options(document, "OpenDelta")
    shares, trained = shares_of(saved.tensors)
    options, modules, converted = _WRITERS[kind](document, shares, backbone)
    tensors = {name_of(kind, module, leaf): t for module, own in converted.items() for leaf, t in own.items()}
    if kind == "bitfit":
        tensors = {name.replace(".bitfit.bias", ".bias"): tensor for name, tensor in tensors.items()}
    if twice := sorted(tensors.keys() & trained.keys()):
        msg = f"The delta trained {twice[0]} and also has a bias of its own there; OpenDelta keeps one value. {KEEP}"
        raise ConfigError(msg)
    config = {**_common(document, modules, trained, backbone), **options}
    content = io.BytesIO()
    torch.save({name: tensor.contiguous() for name, tensor in (tensors | trained).items()}, content)
    return {
        WEIGHTS: content.getvalue(),
        CARD: card(saved, backbone.named, "opendelta"),
        CONFIG: f"{json.dumps(config, indent=2, sort_keys=True)}\n".encode(),
    }


def _common(
    document: Mapping[str, Any], modules: Collection[str], trained: Iterable[str], backbone: Backbone
) -> dict[str, Any]:
    """Return the fields that all types have.

    Args:
        modules: the modules that the delta is on, in order; of a pair both, which may be the same.
    """
    kind = document["delta_type"]
    below_head = any(name.startswith(_HEAD) for name in (*modules, *trained))
    if kind == "lora" and (lost := [name for name in modules if name.startswith(_HEAD)]):
        msg = f"OpenDelta's LoRA leaves out every module whose name begins with {_HEAD}, such as {lost[0]}. {KEEP}"
        raise ConfigError(msg)
    unfrozen = list(document.get("unfrozen_modules") or ["deltas"])
    if any(MARK in name for name in unfrozen):  # common names, which mean nothing beside real ones
        unfrozen = ["deltas", *sorted(trained)]
    addresses = exact_addresses(modules, backbone.modules)
    fields = {
        "backbone_checkpoint_name": (backbone.named or str(document.get("backbone_checkpoint_name", ""))).split("/")[
            -1
        ],
        "backbone_class": backbone.class_name,
        "delta_type": kind,
        "exclude_modules": [] if below_head else [_HEAD],
        "modified_modules": ["root"] if kind == "soft_prompt" else [addresses[name] for name in modules],
        "opendelta_version": _VERSION,
    }
    if "transformers_version" in document:
        fields["transformers_version"] = document["transformers_version"]
    if kind != "soft_prompt":
        fields["common_structure"] = None
    if unfrozen != ["deltas"]:
        fields["unfrozen_modules"] = unfrozen
    return fields


# ----- LoRA -----


def _lora(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Converted:
    for option, description in {"use_dora": "DoRA", "use_bias": "bias of B"}.items():
        if document.get(option):
            raise ConfigError(f"OpenDelta's LoRA has no {description}, and this one has. {AS_LORA}")
    updates: dict[str, Update] = {}
    for module, leaves in shares.items():
        if "lora_A" in leaves:
            updates[module] = lora_update(document, module, leaves)
        else:
            parts = by_part(leaves)
            scale = {lora_update(document, module, part).scale for part in parts.values()}.pop()
            updates[module] = Update(*joined(module, parts, backbone), scale)
        require_linear(module, backbone)
    rank, alpha, uniform = of_one_rank(updates)
    options = {"lora_alpha": alpha, "lora_dropout": document.get("lora_dropout", 0.0), "lora_r": rank}
    return options, list(shares), {name: {"lora_A": u.down, "lora_B": u.up} for name, u in uniform.items()}


# ----- Bottlenecks -----


def _adapter(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Converted:
    refuse_at_input(document)
    return _bottleneck(document, shares, backbone), list(shares), _of_one_width(shares)


def _parallel_adapter(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Converted:
    spans = spans_of(document, shares, backbone)
    places = [name for pair in spans.items() for name in dict.fromkeys(pair)]
    order = {name: number for number, name in enumerate(backbone.modules)}
    if [order[name] for name in places] != sorted(order[name] for name in places):
        msg = f"OpenDelta pairs modules in the order of the backbone, and the spans of this delta overlap: {places[:4]}. {KEEP}"
        raise ConfigError(msg)
    family = getattr(getattr(backbone.model, "config", None), "model_type", "")
    for start in spans:
        module = backbone.module(start)
        is_block = module is not None and any(not isinstance(child, Site) for child in module.children())
        if is_block and family not in POSITIONAL:
            msg = (
                f"{start} is a {type(module).__name__}: it is not known that a {family or type(backbone.model).__name__} calls it with its "
                f"hidden state as the first positional argument, where OpenDelta reads it. {KEEP}"
            )
            raise ConfigError(msg)
    options = {**_bottleneck(document, shares, backbone), "scaled": None}  # OpenDelta has the field and does not use it
    tensors, scale = _of_one_width(shares), float(document.get("scaled", 1.0))
    for own in tensors.values() if scale != 1.0 else ():
        own |= {leaf: own[leaf] * scale for leaf in ("up_proj.weight", "up_proj.bias")}
    return options, [name for pair in spans.items() for name in pair], tensors


def _bottleneck(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> dict[str, Any]:
    name = activation(document, backbone)
    require_bottlenecks(shares)
    return {"bottleneck_dim": _width(shares), "non_linearity": name}


def _width(shares: Shares) -> int:
    return max(own["down_proj.weight"].shape[0] for own in shares.values())


def _of_one_width(shares: Shares) -> Shares:
    width = _width(shares)
    return {module: of_width(own, width) for module, own in shares.items()}


def _low_rank_adapter(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Converted:
    if (rank := document.get("low_rank_rank", 1)) != 1:
        raise ConfigError(f"OpenDelta's low-rank adapters have rank 1, and this one has rank {rank}. {KEEP}")
    ways = {f"{way}_sampler.{leaf}" for way in ("down", "up") for leaf in ("W_left", "W_right", "b")}
    require_leaves(shares, ways)
    options = {
        "low_rank_rank": 1,
        "low_rank_w_init": document.get("low_rank_w_init", "glorot-uniform"),
        "non_linearity": activation(document, backbone),
        "reduction_factor": document.get("reduction_factor", 32),
    }
    return options, list(shares), shares


def _compacter(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Converted:
    refuse_at_input(document)
    rules = {"phm_rule_left", "phm_rule_right"} if document.get("factorized_phm_rule") else {"phm_rule"}
    weights = {"W_left", "W_right"} if document.get("factorized_phm", True) else {"W"}
    tensors = unshared(document, shares, rules, weights)
    leaves = {
        f"{way}_sampler.{leaf}"
        for way in ("down", "up")
        for leaf in (*rules, *weights, *(["b"] if document.get(f"use_bias_{way}_sampler", True) else []))
    }
    require_leaves(tensors, leaves)
    options = {name: document[name] for name in _COMPACTER if name in document}
    options |= {"bottleneck_dim": None, "sequential": None, "kronecker_prod": document.get("kronecker_prod")}
    shared = {"shared_phm_rule": False, "shared_W_phm": False}  # each layer gets its copy
    return {**options, **shared, "non_linearity": activation(document, backbone)}, list(tensors), tensors


# ----- BitFit, prefix, soft prompt -----


def _bitfit(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Converted:
    require_leaves(shares, {"bias"})
    tensors: Shares = {}
    for module, own in shares.items():
        layer = backbone.module(module)
        has_bias = f"{module}.bias" in backbone.shapes or getattr(layer, "bias", None) is not None
        if not has_bias:
            msg = (
                f"{module} has no bias of its own. OpenDelta 0.3.2 fails to make one for a Linear, and makes that of another layer only in its "
                f"first pass, so that a saved one is lost. {KEEP}"
            )
            raise ConfigError(msg)
        value, offset = backbone.value(f"{module}.bias"), own["bias"]
        if value.shape != offset.shape:
            msg = f"The bias of {module} is {list(value.shape)}, and the delta's is {list(offset.shape)}. Pass its own backbone."
            raise CheckpointError(msg)
        tensors[module] = {"bias": value.to(torch.promote_types(value.dtype, offset.dtype)) + offset}
    return {}, list(shares), tensors


def _prefix(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Converted:
    if document.get("shift_positions") or document.get("shift_keys"):
        msg = f"This prefix moves the positions of the text, and OpenDelta's leaves them. {KEEP}"
        raise ConfigError(msg)
    refuse_without_dummy_inputs(backbone)
    whole, count = bool(document.get("reparameterize", True)), document.get("prefix_token_num", 6)
    names = (
        prefixed_attentions(document, model_of(backbone, "which attentions have a prefix")) if whole else list(shares)
    )
    places = {name: place_of_prefix(name, backbone) for name in names}
    network = {f"reparams.{part}.weight" for part in ("wte", "control_trans.0", "control_trans.2")}
    network |= {f"reparams.control_trans.{number}.bias" for number in (0, 2)}
    require_leaves(shares, network if whole else {"past_key", "past_value"})
    if whole and list(shares) != names[:1]:
        msg = f"The prefix is at {min(shares)}, and its config puts it first at {names[0]}. Pass the backbone of this delta."
        raise CheckpointError(msg)
    options = {
        "embed_dim": document.get("embed_dim", 512),
        "mid_dim": document.get("mid_dim", 512),
        "prefix_token_num": count,
        "reparameterize": whole,
    }
    converted = {places[module][0 if whole else 1]: own for module, own in shares.items()}
    return options, [address for address, _ in places.values()], converted


def _soft_prompt(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Converted:
    require_leaves(shares, {"soft_embeds"})
    if document.get("other_expand_ids", dict(_EXPANDED)) != _EXPANDED:
        msg = f"OpenDelta saves no other_expand_ids, and takes {dict(_EXPANDED)}. {KEEP}"
        raise ConfigError(msg)
    model_type = getattr(getattr(backbone.model_or_stand_in, "config", None), "model_type", "")
    if bool(document.get("bare_embeddings")) != (model_type == "distilbert"):
        msg = (
            f"The transformers of OpenDelta's days leaves out the positions of soft prompts in DistilBERT alone. {KEEP}"
        )
        raise ConfigError(msg)
    count = next(iter(shares.values()))["soft_embeds"].shape[0]
    options = {
        "init_range": document.get("init_range", 0.5),
        "soft_token_num": count,
        "token_init": document.get("token_init", True),
    }
    return options, [], shares


_EXPANDED: Final = {"attention_mask": 1, "token_type_ids": 0}
_WRITERS: Final[Mapping[str, Callable[[Mapping[str, Any], Shares, Backbone], Converted]]] = {
    "adapter": _adapter,
    "bitfit": _bitfit,
    "compacter": _compacter,
    "lora": _lora,
    "low_rank_adapter": _low_rank_adapter,
    "parallel_adapter": _parallel_adapter,
    "prefix": _prefix,
    "soft_prompt": _soft_prompt,
}
