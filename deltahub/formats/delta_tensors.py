"""The tensors of a saved delta as the writers of other formats need them: by module, checked against the config, and made uniform.

Other libraries have one rank, one scale or one width for all modules where a delta may have several. Zeros fill up what is smaller, and
a factor moves into the last matrix, which leaves the outputs as they are:

    (a / r) B A = s [c B, 0] [A; 0]        c = a / (r s)
    U act(D h + b) = [U, 0] act([D; 0] h + [b; 0])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.functional import pad

from deltahub.checkpoint.address import rank_and_scale
from deltahub.checkpoint.config import SCHEMA
from deltahub.checkpoint.manifest import DELTA_PART
from deltahub.engine.attention_layers import attentions
from deltahub.engine.filling import not_finite
from deltahub.engine.site import is_delta_name
from deltahub.engine.structure.layouts import is_on_parameter
from deltahub.engine.structure.targets import find_targets
from deltahub.errors import CheckpointError, ConfigError, NoMatchError
from deltahub.files.documents import load_schema, shown
from deltahub.formats.backbone import ASK, Backbone

# Options by delta type that the writers of adapters and OpenDelta write, refuse, or know to leave the outputs as they are.
_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    "adapter": frozenset({"at_input", "bottleneck_dim", "bottleneck_pattern", "non_linearity"}),
    "bitfit": frozenset(),
    "compacter": frozenset(
        {
            "at_input",
            "factorized_phm",
            "factorized_phm_rule",
            "hypercomplex_division",
            "hypercomplex_nonlinearity",
            "kronecker_prod",
            "learn_phm",
            "non_linearity",
            "phm_c_init",
            "phm_init_range",
            "phm_rank",
            "reduction_factor",
            "shared_W_phm",
            "shared_phm_rule",
            "use_bias_down_sampler",
            "use_bias_up_sampler",
        }
    ),
    "ia3": frozenset({"feedforward_modules"}),
    "lora": frozenset(
        {
            "alpha_pattern",
            "lora_alpha",
            "lora_dropout",
            "lora_r",
            "rank_pattern",
            "use_bias",
            "use_dora",
            "use_rslora",
        }
    ),
    "low_rank_adapter": frozenset({"low_rank_rank", "low_rank_w_init", "non_linearity", "reduction_factor"}),
    "parallel_adapter": frozenset({"bottleneck_dim", "bottleneck_pattern", "non_linearity", "scaled"}),
    "prefix": frozenset(
        {"embed_dim", "mid_dim", "prefix_token_num", "reparameterize", "shift_keys", "shift_positions"}
    ),
    "soft_prompt": frozenset({"bare_embeddings", "init_range", "other_expand_ids", "soft_token_num", "token_init"}),
}
Shares = dict[str, dict[str, Tensor]]  # by module, by the name within the delta
_WAYS: Final = ("down_proj.weight", "down_proj.bias", "up_proj.weight", "up_proj.bias")


def refuse_unknown_options(document: Mapping[str, Any], library: str) -> None:
    """Refuse a delta with an option set that the writers do not know.

    Args:
        document: the delta's config.
        library: the library that it is written for.

    Raises:
        ConfigError: the message names the option.
    """
    kind = document["delta_type"]
    options = load_schema(SCHEMA)["definitions"]["types"].get(kind, {}).get("properties", {})
    for name in sorted(options.keys() - _KNOWN.get(kind, frozenset())):
        if document.get(name) not in (None, False, "", [], {}):
            msg = f"This {kind} has {name}={shown(document[name])}, which is not written for {library}. Keep it in DeltaHub's own format."
            raise ConfigError(msg)


def refuse_parameter(name: str, leaf: str, tensor: Tensor) -> None:
    """Refuse a LoRA on a parameter that a module reads itself, such as a stack of experts; only PEFT has the same.

    Raises:
        ConfigError: the tensor is of such a LoRA.
    """
    if leaf.endswith("lora_A") and is_on_parameter(leaf, tensor.dim()):
        msg = f"The LoRA acts on a parameter that its module reads itself ({name}), which is written for PEFT only (--format peft)."
        raise ConfigError(msg)


def shares_of(tensors: Mapping[str, Tensor]) -> tuple[Shares, dict[str, Tensor]]:
    """Sort the tensors of a checkpoint into those of the delta, by module, and those of the backbone that it trained, by name."""
    shares: Shares = {}
    trained: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items()):  # a safetensors file is unordered
        if is_delta_name(name):
            module, _, leaf = f".{name}".partition(DELTA_PART)
            refuse_parameter(name, leaf, tensor)
            shares.setdefault(module.removeprefix("."), {})[leaf] = tensor
        else:
            trained[name] = tensor
    return shares, trained


def require_leaves(shares: Mapping[str, Mapping[str, Tensor]], leaves: frozenset[str] | set[str]) -> None:
    """Refuse a delta with other tensors than its config announces: a reader would make up those that are missing.

    Args:
        leaves: the names of the tensors of every module.

    Raises:
        CheckpointError: the message names the first tensor that is missing, unexpected or not finite.
    """
    wrong = [] if shares else ["there is none of the delta itself"]
    for module, own in shares.items():
        wrong += [f"{module} has no {leaf}" for leaf in sorted(leaves - own.keys())]
        wrong += [f"{module} has {leaf!r}, which is not part of it" for leaf in sorted(own.keys() - leaves)]
        wrong += not_finite({f"{module}.{leaf}": tensor for leaf, tensor in own.items()})
    if wrong:
        msg = f"The tensors do not fit the delta's config: {wrong[0]}. Save the delta again."
        raise CheckpointError(msg)


@dataclass(frozen=True)
class Update:
    """The LoRA of one layer, or of one part of it: ``scale up down``.

    Attributes:
        down: A, ``(rank, n_in)``.
        up: B, ``(n_out, rank)``.
        scale: the factor of the product.
    """

    down: Tensor
    up: Tensor
    scale: float


def lora_update(document: Mapping[str, Any], module: str, leaves: Mapping[str, Tensor]) -> Update:
    """Return the update of a layer, or of a part of it, with the scale of its config.

    Raises:
        CheckpointError: the tensors do not have the rank of the config.
    """
    require_leaves({module: leaves}, {"lora_A", "lora_B"})
    rank, scale = rank_and_scale(document, module)
    down, up = leaves["lora_A"], leaves["lora_B"]
    if down.dim() != 2 or up.dim() != 2 or down.shape[0] != rank or up.shape[1] != rank:
        msg = f"The LoRA of {module} is {list(down.shape)} and {list(up.shape)}; its config says rank {rank}. Save the delta again."
        raise CheckpointError(msg)
    return Update(down, up, scale)


def of_one_rank(updates: Mapping[str, Update]) -> tuple[int, float, dict[str, Update]]:
    """Give all updates one rank and one scale.

    Returns:
        The rank, alpha with ``scale = alpha / rank``, and the updates.
    """
    rank = max(update.down.shape[0] for update in updates.values())
    scale = Counter(update.scale for update in updates.values()).most_common(1)[0][0]
    uniform: dict[str, Update] = {}
    for name, update in updates.items():
        more = rank - update.down.shape[0]
        up = update.up if update.scale == scale else update.up * (update.scale / scale if scale else 0.0)
        uniform[name] = Update(pad(update.down, (0, 0, 0, more)), pad(up, (0, more)), scale)
    alpha = scale * rank
    return rank, int(alpha) if float(alpha).is_integer() else alpha, uniform


def require_bottlenecks(shares: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse an adapter without the tensors of a bottleneck, or with such that do not fit each other.

    Raises:
        CheckpointError: the message names the first module.
    """
    require_leaves(shares, set(_WAYS))
    for module, own in shares.items():
        down, up = own["down_proj.weight"], own["up_proj.weight"]
        shapes = {"down_proj.bias": (down.shape[0],), "up_proj.bias": (up.shape[0],)}
        fits = down.dim() == up.dim() == 2 and down.shape[0] == up.shape[1]
        if not fits or any(tuple(own[leaf].shape) != shape for leaf, shape in shapes.items()):
            msg = f"The bottleneck of {module} is {list(down.shape)} and {list(up.shape)}, which do not fit. Save the delta again."
            raise CheckpointError(msg)


def of_width(own: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Widen a bottleneck to `width` places with zeros."""
    more = width - own["down_proj.weight"].shape[0]
    return {
        "down_proj.weight": pad(own["down_proj.weight"], (0, 0, 0, more)),
        "down_proj.bias": pad(own["down_proj.bias"], (0, more)),
        "up_proj.weight": pad(own["up_proj.weight"], (0, more)),
        "up_proj.bias": own["up_proj.bias"],
    }


def unshared(document: Mapping[str, Any], shares: Shares, rules: set[str], weights: set[str]) -> Shares:
    """Give each layer of a compacter its own copy of what all layers share, which is saved at the first module alone.

    Args:
        rules: the names of the rules; the down and the up projections share one set.
        weights: the names of the weights; there is a set for each of the two.
    """
    sources: dict[str, str] = {}
    for way in ("down", "up"):
        if document.get("shared_phm_rule"):
            sources |= {f"{way}_sampler.{rule}": f"down_sampler.{rule}" for rule in rules}
        if document.get("shared_W_phm"):
            sources |= {f"{way}_sampler.{weight}": f"{way}_sampler.{weight}" for weight in weights}
    saved = {leaf: tensor for own in shares.values() for leaf, tensor in own.items()}
    copies = {leaf: saved[source] for leaf, source in sources.items() if source in saved}
    return {module: {**own, **copies} for module, own in shares.items()}


def model_of(backbone: Backbone, why: str) -> nn.Module:
    """Return the backbone.

    Args:
        why: what only the backbone tells, a clause.

    Raises:
        ConfigError: it was not given.
    """
    if backbone.model is None:
        msg = f"Only the backbone tells {why}. {ASK}"
        raise ConfigError(msg)
    return backbone.model


def spans_of(document: Mapping[str, Any], shares: Mapping[str, object], backbone: Backbone) -> dict[str, str]:
    """Return the spans of a parallel adapter: the module that each reads its input from, to the one it adds its output to.

    The tensors name only the first module of each; the addresses of the config come in pairs.

    Raises:
        ConfigError: the backbone is needed.
        CheckpointError: the config means other modules than those with tensors.
    """
    patterns = list(document.get("modified_modules") or ())
    model = model_of(backbone, "where each parallel adapter adds its output")
    spans: dict[str, str] = {}
    for pair in zip(patterns[::2], patterns[1::2], strict=False):
        exclude, common = document.get("exclude_modules") or (), document.get("common_structure")
        try:
            starts, ends = ([t.name for t in find_targets(model, (pattern,), exclude, common)] for pattern in pair)
        except NoMatchError:
            continue  # a default that this backbone has no module for
        spans |= dict(zip(starts, ends, strict=False))
    if spans.keys() != shares.keys():
        msg = (
            f"The delta holds parallel adapters for {len(shares)} modules, and its config means {len(spans)} of this backbone. "
            "Pass the backbone of this delta."
        )
        raise CheckpointError(msg)
    order = {name: number for number, name in enumerate(backbone.modules)}
    return dict(sorted(spans.items(), key=lambda span: order[span[0]]))


def prefixed_attentions(document: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return the real names of the attentions with a prefix, in the order of the backbone."""
    exclude, common = document.get("exclude_modules") or (), document.get("common_structure")
    around = find_targets(model, document.get("modified_modules") or ("attn@",), exclude, common)
    return [name for name in attentions(model) if any(f"{name}.".startswith(f"{target.name}.") for target in around)]
