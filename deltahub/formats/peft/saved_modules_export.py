"""Conversion of trained backbone tensors to PEFT: `modules_to_save`, and biases of layers with a LoRA.

PEFT replaces each module in `modules_to_save` by a copy, and needs the whole copy in the file. So the untrained tensors of such a
module are taken from the backbone. A tensor shared by several modules is written once per module, because each gets a copy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from torch import Tensor, nn

from deltahub.errors import ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.peft.adapter import MODEL, PROMPTED, Exported
from deltahub.formats.peft.module_matching import outermost, saved

# Names that PEFT adds to the tree of modules, which names in modules_to_save could match too.
_ADDED: Final = (
    "base_layer",
    "default",
    "ia3_l",
    "ln_tuning_layers",
    "lora_A",
    "lora_B",
    "lora_dropout",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "embedding",
    "prompt_encoder",
    "word_embeddings",
)
_REMEDY: Final = "Load the delta with deltahub."


def add_trained(
    adapter: Exported, trained: Mapping[str, Tensor], adapted: set[str], backbone: Backbone, heads: Collection[str] = ()
) -> None:
    """Add the backbone's tensors that a delta trained.

    Args:
        adapted: the modules with the delta.
        heads: the modules that PEFT saves with every adapter for this task.

    Raises:
        ConfigError: PEFT cannot replace a module, or the backbone is needed.
    """
    replaced: set[str] = set()
    for name, tensor in trained.items():
        module, _, leaf = name.rpartition(".")
        if module in adapted and leaf == "bias" and adapter.peft_type == "LORA":
            adapter.options["bias"] = "all"
            adapter.tensors[f"{MODEL}{module}.base_layer.bias"] = tensor
        else:
            replaced |= _owners(name, adapted, backbone)
    if adapter.needs_task:
        _refuse_embeddings(replaced, backbone)
    implied = outermost(saved(heads, backbone.modules))
    names = [module for module in outermost(replaced) if not any(_within(module, head) for head in implied)]
    hits = saved([*names, *heads], {*backbone.modules, *names})
    _check_hits(hits, names, adapted)
    prefix = PROMPTED if adapter.needs_task else MODEL
    for name in (key for module in sorted(hits) for key in backbone.keys(module)):
        adapter.tensors[f"{prefix}{name}"] = backbone.value(name).clone()  # a copy each, where modules share a tensor
    adapter.modules_to_save = names


def _owners(name: str, adapted: set[str], backbone: Backbone) -> set[str]:
    """Return the modules that hold a tensor."""
    owners = {module.rpartition(".")[0] for module in backbone.names_of(name)}
    if "" in owners:
        msg = f"The delta trained {name}, which belongs to no layer, and PEFT cannot replace that. {_REMEDY}"
        raise ConfigError(msg)
    if owners & adapted:
        msg = f"The delta trained {name}, which is of a layer that the delta adapts, and PEFT cannot replace that. {_REMEDY}"
        raise ConfigError(msg)
    for owner in owners:
        if isinstance(
            module := backbone.module(owner), (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
        ):
            msg = f"The delta trained {name} of a {type(module).__name__}, which PEFT cannot replace. {_REMEDY}"
            raise ConfigError(msg)
    return owners


def _refuse_embeddings(replaced: set[str], backbone: Backbone) -> None:
    """Refuse trained embeddings beside a prompt: PEFT looks words up in the backbone's own."""
    for module in replaced:
        if isinstance(backbone.module(module), nn.Embedding):
            msg = (
                f"The delta trained {module} and a prompt, for which PEFT uses the backbone's own embeddings. {_REMEDY}"
            )
            raise ConfigError(msg)


def _check_hits(hits: set[str], names: Collection[str], adapted: set[str]) -> None:
    """Refuse names that match modules which PEFT cannot save beside the others."""
    for hit in sorted(hits):
        if met := sorted(module for module in adapted if _within(module, hit) or _within(hit, module)):
            msg = f"PEFT would save {hit} as a whole, and the delta adapts {met[0]}. {_REMEDY}"
            raise ConfigError(msg)
        if around := [outer for outer in hits if outer != hit and _within(hit, outer)]:
            msg = f"PEFT would save {hit} and {around[0]}, which contains it, and can save one of them only. {_REMEDY}"
            raise ConfigError(msg)
    if wide := sorted(saved(names, _ADDED)):
        name = next(name for name in names if wide[0].endswith(name))
        msg = f"The delta trained {name}, and PEFT takes that name for {wide[0]} of its own layers too. {_REMEDY}"
        raise ConfigError(msg)


def _within(module: str, outer: str) -> bool:
    return f"{module}.".startswith(f"{outer}.")
