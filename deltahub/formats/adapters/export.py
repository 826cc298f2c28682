"""Writer for the checkpoints of AdapterHub's `adapters`: `adapter_config.json` and `adapter.safetensors`, as release 1.3 loads them.

    model.load_adapter(path, use_safetensors=True)

`adapters` makes up what a file lacks, so a delta is written only where its modules are exactly those that a config of `adapters` means.
The tables that say where these are, are the reader's: `families` and `placement`.

bottleneck_writing, low_rank_writing, prefix_writing        the writers of the methods
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import safetensors.torch
from torch import Tensor

from deltahub.checkpoint.checkpoint import CARD, Checkpoint
from deltahub.errors import ConfigError
from deltahub.formats.adapters import heads
from deltahub.formats.adapters.bottleneck_writing import KEEP, NAME, Written, adapter, compacter, parallel_adapter
from deltahub.formats.adapters.low_rank_writing import AS_LORA, ia3, lora
from deltahub.formats.adapters.names import Backbone as Names
from deltahub.formats.adapters.prefix_writing import prefix
from deltahub.formats.adapters.reading import CONFIG, WEIGHTS
from deltahub.formats.backbone import Backbone
from deltahub.formats.delta_tensors import Shares, model_of, refuse_unknown_options, shares_of, spans_of
from deltahub.formats.writing import card

_VERSION: Final = "adapters.1.3.0"
_STACKS: Final = {"mt5": ("encoder", "decoder", "shared"), "t5": ("encoder", "decoder", "shared")}
# Model types where `adapters` 1.3 computes something else with a prefix unless attention is computed in the plain way.
_EAGER_PREFIX: Final = frozenset({"gpt2", "llama", "mistral"})
_EAGER: Final = (
    b'\nLoad the model with `attn_implementation="eager"`: with another one, adapters 1.3 masks the prefix.\n'
)
_NO_FORM: Final = {
    "adalora": f"the only update of a weight that adapters has is LoRA. {AS_LORA}",
    "bitfit": f"adapters trains no biases. {KEEP}",
    "fusion": f"an AdapterFusion is read, and not written. {KEEP}",
    "invertible_adapter": f"invertible adapters are read, and not written. {KEEP}",
    "layer_norm": f"adapters trains no LayerNorms. {KEEP}",
    "low_rank_adapter": f"adapters has no low-rank adapters. {KEEP}",
    "reft": f"a ReFT is read, and not written. {KEEP}",
    "soft_prompt": f"the prompt of adapters is put behind the embeddings and gives other outputs than a soft prompt here. {KEEP}",
    "union": f"a union is read, and not written; make a delta of each of its methods and write these. {KEEP}",
    "vera": f"a VeRA of adapters draws its matrices at random when it is loaded. {AS_LORA}",
    "weight_update": f"the only update of a weight that adapters has is LoRA. {AS_LORA}",
}


def files(saved: Checkpoint, backbone: Backbone) -> dict[str, bytes]:
    """Return the files of an adapter of `adapters`, by name.

    Raises:
        ConfigError: `adapters` has no equivalent of this delta, or the backbone is needed; the message says which.
        CheckpointError: the tensors are not those that the config announces, or the backbone is not the one of the delta.
    """
    document = saved.document
    model = model_of(backbone, "where adapters puts its modules")
    names = Names.of(model)
    shares, trained = shares_of(saved.tensors)
    config, tensors = _written(document, shares, backbone, names)
    own = {"config": config, "hidden_size": names.width, "name": NAME, **_common(document, backbone, names)}
    head = _head(document, trained, backbone, names)
    note = _EAGER if document["delta_type"] == "prefix" and names.model_type in _EAGER_PREFIX else b""
    return {
        WEIGHTS: _bytes({f"{names.base}{name}": tensor for name, tensor in tensors.items()}),
        **head,
        CARD: card(saved, backbone.named, "adapters") + note,
        CONFIG: _json(own),
    }


def _written(document: Mapping[str, Any], shares: Shares, backbone: Backbone, names: Names) -> Written:
    """Return the config of the method and its tensors by name relative to the base model."""
    kind = document["delta_type"]
    writers = {"adapter": adapter, "compacter": compacter, "ia3": ia3, "lora": lora, "prefix": prefix}
    if kind not in (*writers, "parallel_adapter"):
        reason = _NO_FORM.get(kind, f"adapters has no such method. {KEEP}")
        raise ConfigError(f"This {kind} cannot be written for adapters: {reason}")
    refuse_unknown_options(document, "adapters")
    if kind == "parallel_adapter":
        return parallel_adapter(document, shares, spans_of(document, shares, backbone), names)
    return writers[kind](document, shares, names)


def _common(document: Mapping[str, Any], backbone: Backbone, names: Names) -> dict[str, Any]:
    """Return the fields of the configs of adapters and of heads."""
    return {
        "model_class": type(names.model).__name__,
        "model_name": backbone.named or str(document.get("backbone_checkpoint_name", "")),
        "model_type": names.model_type,
        "version": _VERSION,
    }


def _head(
    document: Mapping[str, Any], trained: Mapping[str, Tensor], backbone: Backbone, names: Names
) -> dict[str, bytes]:
    """Return the files of the head that was trained beside the delta; none if there is none.

    Raises:
        ConfigError: another part of the backbone was trained.
    """
    base = _STACKS.get(names.model_type, (names.base_prefix.removesuffix("."),))
    if inner := next((name for name in sorted(trained) if not names.base_prefix or name.startswith(base)), None):
        msg = f"The delta also trained {inner}, and adapters saves no part of a model but its head. {KEEP}"
        raise ConfigError(msg)
    if not trained:
        return {}
    model_config: Any = getattr(names.model, "config", None)
    config = {
        "config": None,
        "hidden_size": names.width,
        "label2id": getattr(model_config, "label2id", None),
        "name": None,
        "num_labels": getattr(model_config, "num_labels", None),
        **_common(document, backbone, names),
    }
    return {heads.WEIGHTS: _bytes(trained), heads.CONFIG: _json(config)}


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    # Copies: safetensors refuses tensors that share memory.
    return safetensors.torch.save({name: t.detach().clone().contiguous() for name, t in sorted(tensors.items())})


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True).encode()
