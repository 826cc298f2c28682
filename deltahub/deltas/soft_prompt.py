"""Prompt tuning: trained embeddings before those of the text.

    f([P; E(x)])        P: (n, hidden), the soft tokens; E(x): (tokens, hidden), the text's embeddings

A decoder or an encoder returns n more positions, at the front; in an encoder-decoder only the encoder's input grows.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", https://arxiv.org/abs/2104.08691
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Final

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Limits, Positive
from deltahub.deltas.soft_tokens import BareEmbeddings, MaskExtension, SoftTokens, home_of_embeddings
from deltahub.engine.building import Like
from deltahub.engine.insertion import Insertion
from deltahub.engine.modules import modules_by_name, own_modules
from deltahub.engine.offloading import resident
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError, TargetError
from deltahub.handle.base import DeltaBase

_EXPAND_IDS: Final = {"attention_mask": 1, "token_type_ids": 0}


@dataclass(frozen=True, kw_only=True)
class SoftPromptConfig(DeltaConfig):
    """Options of prompt tuning: the number of soft tokens, their initial values, and the arguments that grow with the text.

    Args:
        soft_token_num: number of soft tokens, at least 1.
        init_range: the initial values are between ``-init_range`` and ``init_range`` if `token_init` is False.
        token_init: whether they start as the embeddings of the first tokens of the vocabulary.
        other_expand_ids: arguments with an entry for each token, and their value for soft tokens.
        bare_embeddings: whether the model leaves out positions and normalisation, as DistilBERT did for soft tokens in
            OpenDelta's days; only its checkpoints need that.
    """

    soft_token_num: Count = 100
    init_range: Positive = 0.5
    token_init: bool = True
    other_expand_ids: Annotated[Mapping[str, int], Limits(maxProperties=1024)] = field(default_factory=_EXPAND_IDS.copy)
    bare_embeddings: bool = False

    delta_type: ClassVar[str] = "soft_prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers_to_transform is not None:
            raise _no_choice("layers_to_transform", list(self.layers_to_transform))


class SoftPromptModel(DeltaBase):
    """Soft tokens before the text of a decoder, an encoder, or the encoder of an encoder-decoder.

    Positions, masks and labels grow with the text. Where positions are learned, text and soft tokens have to fit into them.

    Args:
        backbone_model: the model to modify.
        soft_token_num: number of soft tokens, at least 1.
        init_range: the initial values are between ``-init_range`` and ``init_range`` if `token_init` is False.
        token_init: whether they start as the embeddings of the first tokens of the vocabulary.
        other_expand_ids: arguments with an entry for each token, and their value for soft tokens.
        modified_modules: None: the text is modified, not modules.
        exclude_modules: kept for OpenDelta's signature.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: kept for OpenDelta's signature.
        interactive_modify: False: there are no modules to choose.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "soft_prompt"
    config_class = SoftPromptConfig

    def __init__(
        self,
        backbone_model: nn.Module,
        soft_token_num: int = 100,
        init_range: float = 0.5,
        token_init: bool = True,
        other_expand_ids: Mapping[str, int] = _EXPAND_IDS,
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        *,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = SoftPromptConfig(
            soft_token_num=soft_token_num,
            init_range=init_range,
            token_init=token_init,
            other_expand_ids=dict(other_expand_ids),
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
        )
        if interactive_modify is not False:
            raise _no_choice("interactive_modify", interactive_modify)
        super().__init__(backbone_model, config, name=name, dtype=dtype)

    @classmethod
    def plan(cls, backbone: nn.Module, config: SoftPromptConfig) -> list[Target]:
        """Return the model, and its encoder if it has a decoder too, which then gets the soft tokens.

        With `bare_embeddings`, the module of its token embeddings comes first. In a module that only holds models, each of them
        gets soft tokens.
        """
        if config.modified_modules:
            raise _no_choice("modified_modules", list(config.modified_modules))
        return [target for name, model in _models(backbone).items() for target in _places(name, model, config)]

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: SoftPromptConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build soft tokens at the last target of each model, and at the one around it an insertion that lets a decoder see them."""
        insertions: dict[str, Insertion] = {}
        for name in _models(backbone):
            own_targets = [target for target in targets if f"{target.name}.".startswith(f"{name}." if name else "")]
            insertions |= _new_insertions(config, own_targets, like)
        return insertions


def _models(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the models that take a text, by name: the backbone, or the outermost ones in a module that only holds models."""
    models: dict[str, nn.Module] = {}
    for name, module in own_modules(backbone):
        outermost = not any(f"{name}.".startswith(f"{outer}." if outer else "") for outer in models)
        if outermost and hasattr(module, "get_input_embeddings"):
            models[name] = module
    return models or {"": backbone}


def _places(name: str, model: nn.Module, config: SoftPromptConfig) -> list[Target]:
    """Return the targets in one model: see `SoftPromptModel.plan`.

    Raises:
        ConfigError: the vocabulary is smaller than the number of soft tokens that start as its first tokens.
        TargetError: the model takes no embeddings.
    """
    modules = modules_by_name(model)
    targets = [Target("", model)]
    if config.bare_embeddings:
        home = home_of_embeddings(model)
        targets = [Target(home, modules[home]), *targets]
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        encoder: Any = model.get_encoder()  # type: ignore[operator]
        targets += [Target(inner, module) for inner, module in modules.items() if module is encoder]
    vocabulary = len(_embedding_weight(targets[-1].module))
    if config.token_init and config.soft_token_num > vocabulary:
        msg = (
            f"{config.soft_token_num} soft tokens cannot start as the first tokens of a vocabulary of {vocabulary}. "
            "Use fewer, or token_init=False."
        )
        raise ConfigError(msg)
    return [replace(target, name=f"{name}.{target.name}".strip(".")) for target in targets]


def _new_insertions(config: SoftPromptConfig, targets: Sequence[Target], like: Like) -> Mapping[str, Insertion]:
    *around, home = targets[1:] if config.bare_embeddings else targets
    bare = {t.name: BareEmbeddings(t.module) for t in targets[:1] if config.bare_embeddings}
    weight = _embedding_weight(home.module).detach()
    soft = like(home.module).new_empty(config.soft_token_num, weight.shape[1])
    if not soft.is_meta:
        _draw(soft, weight, config)
    fills, count = config.other_expand_ids, config.soft_token_num
    masks = {target.name: MaskExtension(target.module, count, fills) for target in around}
    return {**bare, **masks, home.name: SoftTokens(soft, home.module, fills)}


def _draw(soft: Tensor, weight: Tensor, config: SoftPromptConfig) -> None:
    if config.token_init:
        soft.copy_(weight[: config.soft_token_num])
    else:
        nn.init.uniform_(soft, -config.init_range, config.init_range)


def _embedding_weight(target: nn.Module) -> Tensor:
    """Return the weight of a model's token embeddings, ``(vocabulary, hidden)``.

    Raises:
        TargetError: the model has none, or takes no embeddings instead of tokens.
    """
    takes = "inputs_embeds" in inspect.signature(type(target).forward).parameters
    embeddings: Any = None
    with suppress(NotImplementedError):  # some encoders inherit the method without an implementation
        embeddings = target.get_input_embeddings() if takes else None  # type: ignore[operator]
    weight = None if embeddings is None else resident(embeddings, "weight")
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        msg = (
            f"{type(target).__name__} does not support soft prompts, which need token embeddings and a forward that takes "
            "inputs_embeds. Use a prefix, which is prepended to keys and values."
        )
        raise TargetError(msg)
    return weight


def _no_choice(option: str, value: Any) -> ConfigError:
    msg = f"A soft prompt is prepended to the text, not added to modules, so {option}={value!r} would do nothing. Leave it out."
    return ConfigError(msg)
