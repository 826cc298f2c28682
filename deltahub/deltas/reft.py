"""ReFT: a change of the hidden state of a few positions, in a subspace of low rank.

    h' = h + R^T (act(W h + b) - R h)       R, W: (r, d), b: (r,)

    LoReFT      the rows of R are orthonormal; here R = Q^T of a QR decomposition of what trains
    NoReFT      R is any matrix
    DiReFT      R is any matrix, and R h is not subtracted

The positions are the first and the last tokens of each row without its padding (`deltahub.deltas.token_positions`). In training a
dropout acts on the whole h', as in the authors' code.

Wu et al. 2024, "ReFT: Representation Finetuning for Language Models", https://arxiv.org/abs/2404.03592
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Limits, Text
from deltahub.deltas.adapter_layers import activation, refuse_channels_first
from deltahub.deltas.token_positions import TokenPositions, positions_for
from deltahub.engine.building import Like
from deltahub.engine.insertion import Args, Insertion, Kwargs, map_hidden
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError, TargetError
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class ReftConfig(DeltaConfig):
    """Options of ReFT, with the names of AdapterHub: the positions and the subspace.

    Args:
        r: rank of the subspace.
        prefix_positions: number of tokens at the start of each row.
        suffix_positions: number of tokens at its end.
        orthogonality: whether the rows of R are orthonormal (LoReFT).
        subtract_projection: whether R h is subtracted; without it and without orthogonality it is a DiReFT.
        tied_weights: whether the tokens at the start and at the end have the same R, W and b.
        dropout: share of h' dropped in training.
        non_linearity: act, see `AdapterConfig`; None for none.
    """

    r: Count = 4
    prefix_positions: Annotated[int, Limits(minimum=0, maximum=1 << 20)] = 3
    suffix_positions: Annotated[int, Limits(minimum=0, maximum=1 << 20)] = 0
    orthogonality: bool = True
    subtract_projection: bool = True
    tied_weights: bool = False
    dropout: Annotated[float, Limits(minimum=0, exclusiveMaximum=1)] = 0.0
    non_linearity: Text | None = None

    delta_type: ClassVar[str] = "reft"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prefix_positions and not self.suffix_positions:
            msg = "prefix_positions and suffix_positions are 0, so the delta would never act. Set one of them."
            raise ConfigError(msg)


class Intervention(nn.Module):
    """The change of the hidden state of single tokens.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        width: size of the hidden state.
        config: the rank and the form.
    """

    def __init__(self, like: Tensor, width: int, config: ReftConfig) -> None:
        super().__init__()
        self.orthogonal, self.subtracts = config.orthogonality, config.subtract_projection
        self.activation = activation(config.non_linearity) if config.non_linearity else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Parameter(like.new_empty(config.r, width))
        self.source = nn.Parameter(like.new_empty(config.r, width))
        self.bias = nn.Parameter(like.new_zeros(config.r))
        if not like.is_meta:
            nn.init.orthogonal_(self.projection)
            nn.init.kaiming_uniform_(self.source, a=5**0.5)

    def rows(self, dtype: torch.dtype) -> Tensor:
        """Return R, ``(r, d)``; what is orthonormal already stays as it is."""
        if not self.orthogonal:
            return self.projection.to(dtype)
        wide = torch.promote_types(self.projection.dtype, torch.float32)
        basis, triangle = torch.linalg.qr(self.projection.to(wide).T)
        rows: Tensor = (basis * triangle.diagonal().sign()).T
        return rows.to(dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute h' of a hidden state, both ``(..., d)``, in the wider of the precisions of both."""
        h = hidden.to(torch.promote_types(hidden.dtype, self.projection.dtype))
        rows = self.rows(h.dtype)
        source = self.activation(F.linear(h, self.source.to(h.dtype), self.bias.to(h.dtype)))
        if self.subtracts:
            source = source - F.linear(h, rows)
        changed: Tensor = self.dropout(h + source @ rows)
        return changed


class PositionUpdate(Insertion):
    """An insertion that changes the hidden state of the first and the last tokens in a module's output.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        width: size of the hidden state.
        config: the positions and the form.
    """

    keeps_length = False  # a row that is computed alone would get the positions of all

    def __init__(self, like: Tensor, width: int, config: ReftConfig) -> None:
        super().__init__()
        self.first, self.last = config.prefix_positions, config.suffix_positions
        self.prefix = Intervention(like, width, config) if self.first or config.tied_weights else None
        self.suffix = Intervention(like, width, config) if self.last and not config.tied_weights else None
        self.positions: tuple[TokenPositions, ...] = ()  # a tuple keeps the insertion at the model out of this one

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the hidden state, ``(batch, tokens, d)``; other outputs of the module pass through."""
        return map_hidden(output, self._changed)

    def _changed(self, hidden: Tensor) -> Tensor:
        if hidden.dim() != 3:
            msg = f"ReFT changes hidden states (batch, tokens, width), and a module returned {list(hidden.shape)}. Leave it out."
            raise TargetError(msg)
        changed = hidden
        starts, ends = positions_for(self.positions, hidden, self.first, self.last)
        for places, unit in ((starts, self.prefix), (ends, self.suffix or self.prefix)):
            if places is None or unit is None:
                continue
            index = places.index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
            old = hidden.gather(1, index)
            update = torch.where(places.valid.unsqueeze(-1), unit(old) - old, 0)
            changed = changed.scatter_add(1, index, update.to(hidden.dtype))
        return changed


class ReftModel(DeltaBase):
    """ReFT behind every addressed module; by default behind every block.

    Args:
        backbone_model: the model to modify.
        r: rank of the subspace.
        prefix_positions: number of tokens at the start of each row.
        suffix_positions: number of tokens at its end; not in `generate()`, where the end is not known.
        orthogonality: whether the rows of R are orthonormal (LoReFT).
        subtract_projection: whether R h is subtracted.
        tied_weights: whether the tokens at the start and at the end have the same R, W and b.
        dropout: share of h' dropped in training.
        non_linearity: see `AdapterConfig`; None for none.
        modified_modules: addresses of modules that return a hidden state.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "reft"
    config_class = ReftConfig
    default_modified_modules = (r"[r]block\.\d+",)

    def __init__(
        self,
        backbone_model: nn.Module,
        r: int = 4,
        prefix_positions: int = 3,
        suffix_positions: int = 0,
        orthogonality: bool = True,
        subtract_projection: bool = True,
        tied_weights: bool = False,
        dropout: float = 0.0,
        non_linearity: str | None = None,
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        *,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = ReftConfig(
            r=r,
            prefix_positions=prefix_positions,
            suffix_positions=suffix_positions,
            orthogonality=orthogonality,
            subtract_projection=subtract_projection,
            tied_weights=tied_weights,
            dropout=dropout,
            non_linearity=non_linearity,
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify)

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Check that whole modules are meant, whose hidden state has its width in the last dimension."""
        refuse_channels_first(targets)
        if fused := next((target for target in targets if target.parts), None):
            msg = f"Only parts of {fused.name} are meant, and ReFT changes a whole hidden state. Address the whole module."
            raise TargetError(msg)
        return targets

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: ReftConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build the update of each module, and at the model around it an insertion that notes where its rows begin and end."""
        insertions = dict(super().new_insertions(backbone, config, targets, like))
        notes: dict[str, TokenPositions] = {}
        for address, insertion in insertions.items():
            home = TokenPositions.home(backbone, address)
            if home is not None and isinstance(insertion, PositionUpdate):
                insertion.positions = (notes.setdefault(home, TokenPositions(backbone, home)),)
        if taken := sorted(notes.keys() & insertions.keys()):
            msg = f"{taken[0] or 'The backbone'} is a whole model; ReFT acts on modules inside it. Address its blocks."
            raise TargetError(msg)
        return {**notes, **insertions}

    @classmethod
    def new_insertion(cls, config: ReftConfig, target: Target, width: int, like: Tensor) -> PositionUpdate:
        """Build a new update for one module.

        Raises:
            ConfigError: the rank is larger than the width.
        """
        if config.r > width:
            msg = f"r is {config.r}, more than the width {width} of {target.name}. Choose a smaller one."
            raise ConfigError(msg)
        return PositionUpdate(like, width, config)
