"""What every row of the training matrix shares: the deltas, the data, a plain loop, and the proof that a delta carries over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import deltahub.deltas  # noqa: F401  (registers the types)
from deltahub import AutoDeltaModel, DeltaBase
from deltahub.handle.base import delta_classes
from tests.backbones import bert, equal

# The options are small, and variants of a type stand beside it.
OPTIONS: dict[str, dict[str, Any]] = {
    "adapter": {"bottleneck_dim": 3},
    "compacter": {"reduction_factor": 4, "hypercomplex_division": 2},
    "lora": {"lora_r": 2},
    "low_rank_adapter": {"reduction_factor": 4},
    "parallel_adapter": {"bottleneck_dim": 3},
    "prefix": {"prefix_token_num": 3, "embed_dim": 4, "mid_dim": 5},
    "soft_prompt": {"soft_token_num": 3},
    "union": {"parts": [{"delta_type": "lora", "lora_r": 2}, {"delta_type": "ia3", "modified_modules": ["ff.w2"]}]},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"delta_type": "lora", "lora_r": 2, "use_dora": True},
    "plain_prefix": {"delta_type": "prefix", "prefix_token_num": 3, "reparameterize": False},
}
# Types whose insertions are built as those of another one, which is in the matrix for them; their contracts train them.
LIKE = {"adalora": "lora", "fusion": "adapter", "reft": "adapter", "token_rows": "lora", "vera": "weight_update"}
KINDS = sorted({*delta_classes(), *VARIANTS} - LIKE.keys())
HEADED = ("deltas", "classifier")  # what trains: the delta and, as in most of practice, a fresh head
ROWS, LENGTH, CLASSES = 16, 7, 3

Rows = list[dict[str, Tensor]]


def document(kind: str) -> dict[str, Any]:
    """The config of one column of the matrix: a delta type, or a variant of one."""
    return VARIANTS.get(kind) or {"delta_type": kind, **OPTIONS.get(kind, {})}


def put_on(backbone: nn.Module, kind: str, *, train: tuple[str, ...] = ("deltas",), seed: int = 3) -> DeltaBase:
    """A delta that trains, the same on every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        delta: DeltaBase = AutoDeltaModel.from_config(document(kind), backbone)
    delta.freeze_module(exclude=list(train))
    return delta


def labelled_rows(count: int = ROWS) -> Rows:
    """Sentences of equal length with a class each: no padding, so that a mean over rows splits evenly over processes."""
    draw = torch.Generator().manual_seed(5)
    return [
        {"input_ids": torch.randint(1, 50, (LENGTH,), generator=draw), "labels": torch.tensor(row % CLASSES)}
        for row in range(count)
    ]


def batches(steps: int, size: int = 4) -> Iterator[dict[str, Tensor]]:
    """The rows in order, again and again."""
    rows = labelled_rows()
    for step in range(steps):
        group = [rows[(step * size + offset) % len(rows)] for offset in range(size)]
        yield {key: torch.stack([row[key] for row in group]) for key in group[0]}


def optimizer_for(backbone: nn.Module) -> torch.optim.Optimizer:
    """What every loop here trains with; not Adam, which turns the rounding of a gradient of zero into whole steps."""
    return torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.02, momentum=0.9)


def train_plainly(
    backbone: nn.Module,
    steps: int,
    *,
    call: Callable[..., Any] | None = None,
    share: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> list[float]:
    """A plain loop over all that trains.

    Args:
        call: what to call in place of the backbone: a wrapper around it.
        share: the part of a batch that this process trains on.

    Returns:
        The loss of every step.
    """
    optimizer = optimizer_for(backbone)
    losses = []
    for batch in batches(steps):
        loss = (backbone if call is None else call)(**share(batch)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def answers(backbone: nn.Module) -> Tensor:
    """The logits of a classifier for some rows."""
    with torch.no_grad():
        logits: Tensor = backbone.eval()(**next(batches(1))).logits
    return logits


def require_carries_over(delta: DeltaBase, folder: Path, fresh: Callable[[], nn.Module] = bert) -> None:
    """Save a delta, load it on a fresh backbone, and hold their answers and tensors against each other, bit for bit."""
    delta.save_finetuned(folder)
    require_loads_as(folder, answers(delta.backbone_model), delta.state_dict(), fresh())


def require_loads_as(folder: Path, logits: Tensor, tensors: dict[str, Tensor], backbone: nn.Module) -> None:
    """Load a delta on a backbone; it must answer, and consist of, exactly what is given."""
    untrained = answers(backbone)
    loaded = AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)

    assert not torch.equal(untrained, logits)
    assert torch.equal(logits, answers(backbone))
    assert equal(in_order(tensors), in_order(loaded.state_dict()))


def in_order(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, by name."""
    return dict(sorted(tensors.items()))
