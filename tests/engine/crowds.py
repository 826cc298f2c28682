"""Several deltas on one backbone, and what one forward for each of them gives."""

import torch

import deltahub.deltas  # noqa: F401  (registers the types)
from deltahub import AutoDeltaModel, deltas_of, route
from deltahub.handle.base import delta_classes
from tests.backbones import inputs_for, stir
from tests.deltas.test_contract import OPTIONS

TYPES = sorted(delta_classes())
VARIANTS = {"dora": {"delta_type": "lora", "lora_r": 2, "use_dora": True}}
NOT_ROUTED = {"reft", "soft_prompt"}  # types that ask where tokens are, or change the length of a sequence
ROUTED = sorted({*TYPES, *VARIANTS} - NOT_ROUTED)


def put_on(backbone, kind, name, seed=0, train=("deltas",), **options):
    """A delta that does something; all but the deltas is frozen."""
    document = VARIANTS.get(kind) or {"delta_type": kind, **OPTIONS.get(kind, {})}
    delta = AutoDeltaModel.from_config({**document, **options}, backbone, name=name)
    delta.freeze_module(exclude=[*train, *(f"deltas.{other}" for other in deltas_of(backbone))])
    stir(delta, seed)
    draw = torch.Generator().manual_seed(seed)
    for insertion in delta.insertions.values() if kind == "fusion" else ():  # its members, which do not train
        for buffer in insertion.buffers():
            buffer.add_(torch.randn(buffer.shape, generator=draw) * 0.3)
    return delta


def with_head(backbone, name, seed):
    """A LoRA with a classifier of its own."""
    delta = put_on(backbone, "lora", name, seed, train=("deltas", "classifier"))
    with torch.no_grad():
        backbone.classifier.weight.add_(1 + seed)
        backbone.classifier.bias.sub_(seed)
    return delta


def crowd(backbone, kinds=TYPES):
    """One delta of each type, called by it."""
    for seed, kind in enumerate(kinds):
        put_on(backbone, kind, kind, seed)
    return deltas_of(backbone)


def four_rows(backbone):
    """A batch of four rows that the backbone understands."""
    return {key: torch.cat([tensor, tensor.flip(-1)]) for key, tensor in inputs_for(backbone).items()}


def only(backbone, name, batch):
    """The logits with one delta attached, or none."""
    attached = {other: delta.attached for other, delta in deltas_of(backbone).items()}
    for other, delta in deltas_of(backbone).items():
        delta.attach() if other == name else delta.detach()
    with torch.no_grad():
        logits = backbone(**batch).logits
    for other, delta in deltas_of(backbone).items():
        delta.attach() if attached[other] else delta.detach()
    return logits


def one_by_one(backbone, names, batch):
    """For each row its logits from a forward with its delta alone."""
    return torch.stack([only(backbone, name, batch)[row] for row, name in enumerate(names)])


def routed(backbone, rows, batch):
    """The logits of one forward for all rows."""
    with torch.no_grad(), route(backbone, rows):
        return backbone(**batch).logits
