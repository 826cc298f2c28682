"""Token rows: only some rows of an embedding are trained, those of new tokens for example.

    E'[t] = E[t] + D[i]   for the i-th trained token t,   E'[t] = E[t] for all others        D: (n, width), 0 at the start

Every module whose weight is the same tensor E (a tied output head, the two stacks of T5) gets the same rows: the embeddings where such a
token is looked up, the head in the logits of these tokens, ``W'x = W x + D x``. They are one parameter, kept in the first of the modules.
It is PEFT's `trainable_token_indices`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.checkpoint.address import lies_within
from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Index
from deltahub.deltas.precision import added
from deltahub.engine.building import Like, addressed
from deltahub.engine.bypassed import is_bypassed, is_multiplied
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.layers import embed_scale, linear_fault, lookup_fault, reading_fault
from deltahub.engine.modules import own_modules
from deltahub.engine.structure.targets import Target
from deltahub.engine.weights import as_stored, is_turned, linear_weight
from deltahub.errors import ConfigError, MergeError, TargetError
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class TokenRowsConfig(DeltaConfig):
    """Options of trained token rows.

    Args:
        token_indices: numbers of the trained rows; the config has them in ascending order, as the rows of the parameter are.
    """

    token_indices: Sequence[Index] = ()

    delta_type: ClassVar[str] = "token_rows"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.token_indices or len(set(self.token_indices)) < len(self.token_indices):
            found = "none" if not self.token_indices else f"{list(self.token_indices)[:10]}, with repetitions"
            msg = f"token_indices must be the numbers of one or more rows, each once; got {found}. Pass token_indices=[...]."
            raise ConfigError(msg)
        object.__setattr__(self, "token_indices", tuple(sorted(self.token_indices)))


class TokenRows(Insertion):
    """An insertion that adds trained rows where an embedding looks these tokens up.

    Args:
        like: a tensor with the dtype and device of the new parameter.
        width: width of a row.
        indices: the tokens, in ascending order.
        owner: the insertion that holds the rows; None for one that holds them itself.
    """

    acts_as_one = True
    indices: Tensor

    def __init__(self, like: Tensor, width: int, indices: Sequence[int], owner: TokenRows | None = None) -> None:
        super().__init__()
        self.owner = () if owner is None else (owner,)  # a tuple keeps the rows out of this module
        if owner is None:
            self.token_rows = nn.Parameter(like.new_zeros(len(indices), width))
            device = torch.device("cpu") if like.is_meta else like.device
            self.register_buffer("indices", torch.tensor(indices, device=device), persistent=False)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if not self.owner and not self.token_rows.is_meta:
            self.indices = self.indices.to(self.token_rows.device)

    def rows(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the tokens, ``(n,)``, and their rows, ``(n, width)``."""
        holder = self.owner[0] if self.owner else self
        return holder.indices.to(device), holder.token_rows.to(device)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the rows of the input's tokens, ``(...)``, to the output tensor, ``(..., width)``."""
        table, tokens = cast("nn.Embedding", target), first_input(args, kwargs)
        indices, rows = self.rows(output.device)
        place = torch.searchsorted(indices, tokens.to(indices)).clamp(max=len(indices) - 1)
        hit = indices[place] == tokens
        padding = None if table.padding_idx is None else (indices == table.padding_idx)
        if padding is not None:  # the row of the padding gets no gradient from a look-up, as in the embedding itself
            rows = torch.where(padding[:, None], rows.detach(), rows)
        update = F.embedding(
            torch.where(hit, place, len(rows)),  # a row of zeros for the other tokens
            F.pad(rows, (0, 0, 0, 1)),
            scale_grad_by_freq=table.scale_grad_by_freq,
        )
        if (scale := embed_scale(table)) is not None:
            update = update * (scale.to(update) if isinstance(scale, Tensor) else scale)
        return torch.where(hit[..., None], added(output, update), output)

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the table with the rows added."""
        if fault := self.merge_fault(target):
            raise MergeError(fault)
        table = linear_weight(target).T if is_turned(target) else linear_weight(target)
        indices, rows = self.rows(table.device)
        wide = torch.promote_types(table.dtype, torch.float32)
        table = table.to(wide).index_add(0, indices, rows.detach().to(wide))
        return {"weight": as_stored(target, table.T if is_turned(target) else table)}

    def merge_fault(self, target: nn.Module) -> str:
        """Return why the rows cannot be merged into a table: a clause, empty if they can."""
        return reading_fault(target) or lookup_fault(cast("nn.Embedding", target))


class HeadRows(TokenRows):
    """An insertion that adds the products with trained rows to the logits of their tokens."""

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the products of the hidden state, ``(..., width)``, with the rows to the logits, ``(..., table)``."""
        indices, rows = self.rows(output.device)
        hidden = first_input(args, kwargs)
        wide = torch.promote_types(hidden.dtype, rows.dtype)
        update = F.linear(hidden.to(wide), rows.to(wide))
        return output.index_copy(-1, indices, added(output.index_select(-1, indices), update))

    def merge_fault(self, target: nn.Module) -> str:
        """Return why the rows cannot be merged into a head: a clause, empty if they can."""
        return linear_fault(target)


class TokenRowsModel(DeltaBase):
    """Trained rows of every addressed embedding, and of the modules that share its weight; by default of the input embeddings.

    Args:
        backbone_model: the model to modify.
        token_indices: numbers of the rows to train; those of new tokens exist after `resize_token_embeddings`.
        modified_modules: addresses of embeddings; by default the backbone's `get_input_embeddings()`.
        exclude_modules: addresses of modules to leave out; one that shares its weight with a trained table cannot be left out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        name: the delta's name on this backbone.
        dtype: dtype of the parameter; by default float32, or the layer's if wider.
    """

    delta_type = "token_rows"
    config_class = TokenRowsConfig
    default_exclude_modules = ()  # a tied head takes part

    def __init__(
        self,
        backbone_model: nn.Module,
        token_indices: Sequence[int] = (),
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        *,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = TokenRowsConfig(
            token_indices=token_indices,
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify)

    @classmethod
    def plan(cls, backbone: nn.Module, config: TokenRowsConfig) -> list[Target]:
        """Return the addressed embeddings and all modules that share their weights, in backbone order.

        Raises:
            NoMatchError: an address matches nothing.
            TargetError: a module is not an embedding, or one that shares its weight cannot get the rows.
            ConfigError: a token lies outside the table.
        """
        modules = dict(own_modules(backbone))
        tables = addressed(cls, backbone, config) if config.modified_modules else [_input_embeddings(backbone, modules)]
        chosen: set[str] = set()
        for table in tables:
            _check_table(table, config)
            for name in _sharing(backbone, modules, table.name):
                if not is_bypassed(backbone, name):  # T5 never calls `shared`
                    _check_place(backbone, Target(name, modules[name]), table, config)
                    chosen.add(name)
        return [Target(name, module) for name, module in modules.items() if name in chosen]

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: TokenRowsConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build the rows of each table in the first module that has it; the others refer to it."""
        modules = dict(own_modules(backbone))
        owners: dict[str, TokenRows] = {}
        insertions: dict[str, Insertion] = {}
        for target in targets:
            kind = TokenRows if isinstance(target.module, nn.Embedding) else HeadRows
            table = _sharing(backbone, modules, target.name)[0]
            width = linear_weight(target.module).shape[0 if is_turned(target.module) else 1]
            insertion = kind(like(target.module), width, config.token_indices, owners.get(table))
            owners.setdefault(table, insertion)
            insertions[target.name] = insertion
        return insertions


def _input_embeddings(backbone: nn.Module, modules: Mapping[str, nn.Module]) -> Target:
    get = getattr(backbone, "get_input_embeddings", None)
    layer = get() if callable(get) else None
    for name, module in modules.items():
        if module is layer and name:
            return Target(name, module)
    msg = f"{type(backbone).__name__} does not say which module its input embeddings are. Address them, e.g. modified_modules=['wte']."
    raise TargetError(msg)


def _sharing(backbone: nn.Module, modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """Return the modules that have the weight of a module, in backbone order.

    Raises:
        TargetError: one has it under another name than `weight`.
    """
    weight = modules[name]._parameters.get("weight")
    if weight is None:  # codes, say
        return [name]
    found = {name: "weight"}
    for other, module in modules.items():
        for key, parameter in module._parameters.items():
            if parameter is weight:
                found[other] = key
    if weight.is_meta:  # accelerate unties the tensors it offloads
        tied: Any = getattr(backbone, "all_tied_weights_keys", None) or {}
        first = tied.get(f"{name}.weight", f"{name}.weight")
        aliases = [alias.rpartition(".") for alias in (first, *tied) if tied.get(alias, alias) == first]
        found |= {other: key for other, _, key in aliases if other in modules}
    if odd := next((f"{other}.{key}" for other, key in found.items() if key != "weight"), ""):
        msg = f"{odd} is the weight of {name}, too, where rows of it cannot be trained alone. Untie them, or train the whole weight."
        raise TargetError(msg)
    return [other for other in modules if other in found]


def _check_table(table: Target, config: TokenRowsConfig) -> None:
    if not isinstance(table.module, nn.Embedding):
        msg = f"{table.name} is a {type(table.module).__name__}, which does not look tokens up. Address an embedding, e.g. modified_modules=['wte']."
        raise TargetError(msg)
    if (last := config.token_indices[-1]) >= (size := table.module.num_embeddings):
        msg = (
            f"token_indices has {last}, and {table.name} has the rows 0 to {size - 1}. For new tokens, call "
            "resize_token_embeddings of the backbone first."
        )
        raise ConfigError(msg)


def _check_place(backbone: nn.Module, place: Target, table: Target, config: TokenRowsConfig) -> None:
    """Refuse a module that would read the old rows of a table."""
    if isinstance(place.module, nn.Embedding):
        fault = lookup_fault(place.module)
        if is_multiplied(backbone, place.name):
            fault = "the backbone also multiplies by its weight without calling it, where the rows would not act"
    else:
        fault = "it is not a linear layer" if is_turned(place.module) else linear_fault(place.module)
    if not fault and place.name != table.name and lies_within(place.name, config.exclude_modules or ()):
        fault = "it is excluded, but a tied weight is trained as one"
    if fault:
        shared = "" if place.name == table.name else f", which shares the weight of {table.name},"
        msg = f"{place.name}{shared} cannot hold trained rows: {fault}."
        raise TargetError(msg)
