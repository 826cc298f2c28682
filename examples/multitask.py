"""Four deltas on one backbone, one per domain: trained, published, fetched, and served side by side.

    python examples/multitask.py      the whole story (some minutes on two cores)

`DEMO_STEPS=2` makes a short run, whose accuracies say nothing. Everything is written below `.cache/`; your own registry is
not touched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from minilm import BATCH_SIZE, load_tokenizer, new_backbone, new_delta, one_batch, predict, train
from rich.table import Table
from sentences import DOMAINS, Example, Splits, load_splits, majority
from stage import OUT, STEPS, Stage
from torch import Tensor, nn

import deltahub
from deltahub import AutoDeltaModel, DeltaBase

STAGE: Final = Stage("multitask")
TRAINING_STEPS: Final = 60 if STEPS is None else STEPS  # about one pass over the smallest domain
TEST_ROWS: Final = 400 if STEPS is None else 16  # of each domain
LEARNING_RATE: Final = 2e-3
HEAD_SEED: Final = 1
NONE: Final = "no delta"


def reference(domain: str) -> str:
    """Return the name of a domain's delta in the registry."""
    return f"DeltaHub/sentiment-{domain}"


def publish(domain: str, examples: Sequence[Example]) -> None:
    """Train a delta for a domain and push it."""
    OUT.print(f"\n[bold]{domain}[/bold]: {TRAINING_STEPS} batches")
    backbone = new_backbone(HEAD_SEED)
    delta = new_delta(backbone, ["query", "key", "value", "dense"])
    train(backbone, examples, LEARNING_RATE, seed=HEAD_SEED, steps=TRAINING_STEPS)
    delta.save_finetuned(
        STAGE.work / domain,
        center_args={
            "name": f"sentiment-{domain}",
            "train_tasks": "sentiment",
            "train_datasets": domain,
            "backbone_model": "all-MiniLM-L6-v2",
            "license": "apache-2.0",
        },
        usage="Labels: 0 is negative, 1 is positive. Sentences of up to 64 tokens.",
    )
    STAGE.run("deltahub", "push", f"./{domain}", reference(domain), "--tags", f"sentiment,domain={domain}")


def cross_table(
    backbone: nn.Module, deltas: Mapping[str, DeltaBase], splits: Mapping[str, Splits]
) -> dict[str, dict[str, float]]:
    """Compute the accuracy of each delta on each domain, one delta at a time."""
    accuracies: dict[str, dict[str, float]] = {}
    for name, delta in deltas.items():
        with attached(delta):
            accuracies[name] = {domain: predict(backbone, splits[domain].test)[1] for domain in DOMAINS}
    return accuracies


@contextmanager
def attached(delta: DeltaBase | None) -> Iterator[None]:
    """Attach one delta only, or none."""
    if delta is not None:
        delta.attach()
    yield
    if delta is not None:
        delta.detach()


def show(accuracies: Mapping[str, Mapping[str, float]], splits: Mapping[str, Splits]) -> None:
    """Print the accuracies as a table."""
    table = Table("trained on", *(f"tested on {domain}" for domain in DOMAINS), box=None)
    for name, row in accuracies.items():
        table.add_row(name, *(f"{row[domain]:.3f}" for domain in DOMAINS))
    table.add_row("majority", *(f"{majority(splits[domain].test):.3f}" for domain in DOMAINS))
    OUT.print(table)


@torch.no_grad()
def serve_mixed(backbone: nn.Module, deltas: Mapping[str, DeltaBase], splits: Mapping[str, Splits]) -> None:
    """Route the rows of a batch to different deltas, and compare the outputs with one delta at a time."""
    wanted = [(domain, splits[domain].test[number]) for number in range(4) for domain in DOMAINS]
    rows: list[str | None] = [domain for domain, _ in wanted]
    rows[::5] = [None] * len(rows[::5])  # every fifth row is for the bare backbone
    batch = one_batch([example for _, example in wanted], load_tokenizer())
    del batch["labels"]

    for delta in deltas.values():
        delta.attach()
    with deltahub.route(backbone, [None if name is None else deltas[name] for name in rows]):
        mixed: Tensor = backbone(**batch).logits
    for delta in deltas.values():
        delta.detach()

    alone = torch.empty_like(mixed)
    for name in (None, *deltas):
        chosen = [number for number, row in enumerate(rows) if row == name]
        with attached(deltas.get(name or NONE)):
            alone[chosen] = backbone(**{key: tensor[chosen] for key, tensor in batch.items()}).logits
    difference = (mixed - alone).abs().max().item()
    OUT.print(f"\nA batch of {len(rows)} rows for {', '.join(name or NONE for name in dict.fromkeys(rows))}:")
    OUT.print(f"largest difference of a logit from one delta at a time: {difference:.1e}")
    if difference > 1e-4 or not torch.equal(mixed.argmax(1), alone.argmax(1)):
        sys.exit("The mixed batch does not answer as one delta at a time does.")


def main() -> None:
    """Train, push, pull, put all on one backbone, compare, and serve."""
    shortest = None if STEPS is None else STEPS * BATCH_SIZE
    splits = {domain: load_splits(domain).first(shortest) for domain in DOMAINS}
    splits = {domain: split._replace(test=split.test[:TEST_ROWS]) for domain, split in splits.items()}
    STAGE.clear()
    for domain in DOMAINS:
        publish(domain, splits[domain].train)
    STAGE.run("deltahub", "list", "--tag", "sentiment")

    backbone = new_backbone(HEAD_SEED)
    deltas: dict[str, DeltaBase] = {}
    for domain in DOMAINS:
        deltas[domain] = AutoDeltaModel.from_finetuned(
            reference(domain), backbone_model=backbone, name=domain, cache_dir=STAGE.work / "empty-cache"
        )
        OUT.print(f"Pulled {reference(domain)}: {deltas[domain]!r}", soft_wrap=True)
        deltas[domain].detach()
    accuracies = cross_table(backbone, deltas, splits)
    OUT.print(f"\nAccuracy on {TEST_ROWS} held-out sentences of each domain:")
    show(accuracies, splits)
    serve_mixed(backbone, deltas, splits)


if __name__ == "__main__":
    main()
