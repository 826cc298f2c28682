"""Train a LoRA on real sentences, publish it, fetch it in another process, and load it verified.

    python examples/sentiment.py                         the whole story (about four minutes on two cores)
    python examples/sentiment.py --validate 1e-3 2e-3    validation accuracy of learning rates, to choose one

`DEMO_STEPS=4` makes a short run on a few sentences, whose accuracy says nothing. Everything is written below `.cache/`;
your own registry is not touched.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

import torch
from minilm import BATCH_SIZE, new_backbone, new_delta, predict, train
from probe import frozen_probe
from refusals import show_refusals
from rich.table import Table
from sentences import Splits, load_splits, majority
from stage import OUT, STEPS, Stage

from deltahub import AutoDeltaModel, LoraModel

STAGE: Final = Stage("demo")
CHECKPOINT: Final = STAGE.work / "ckpt"
LOGITS: Final = STAGE.work / "logits.pt"
LEARNING_RATE: Final = 2e-3  # the best of those tried on the validation split: docs/sentiment.md
TRAIN_SEED: Final = 1
NAME: Final = "DeltaHub/sentiment-all-MiniLM-L6-v2"  # what `deltahub push` makes of the checkpoint's task and backbone


def sentences() -> Splits:
    """Return the splits, or a few examples of each for a short run."""
    return load_splits().first(None if STEPS is None else STEPS * BATCH_SIZE)


def trained(splits: Splits, learning_rate: float) -> LoraModel:
    """Train a LoRA on every linear layer of the encoder, and a classifier head, for one pass."""
    delta = new_delta(new_backbone(TRAIN_SEED), ["query", "key", "value", "dense"])
    train(delta.backbone_model, splits.train, learning_rate, seed=TRAIN_SEED, steps=STEPS)
    return delta


def load_elsewhere(reference: str) -> None:
    """Pull the delta in a new process with an empty cache, load it on a fresh backbone, and compare."""
    test = sentences().test
    backbone = new_backbone(seed=12345)  # another head: the delta brings its own
    delta = AutoDeltaModel.from_finetuned(reference, backbone_model=backbone)
    logits, accuracy = predict(backbone, test)
    trained = torch.load(LOGITS, weights_only=True)
    OUT.print(f"Loaded {reference} on a fresh backbone: {delta!r}")
    OUT.print(f"accuracy {accuracy:.4f}, as trained {trained['accuracy']:.4f}")
    difference = (logits - trained["logits"]).abs().max().item()
    OUT.print(f"largest difference of a logit over {len(test):,} sentences: {difference}")
    if difference != 0 or accuracy != trained["accuracy"]:
        sys.exit("The loaded delta does not answer as the trained one did.")


def whole_story() -> None:
    """Train, compare, save, push, list, pull, load, and refuse."""
    splits = sentences()
    STAGE.clear()

    delta = trained(splits, LEARNING_RATE)
    delta.log()
    logits, accuracy = predict(delta.backbone_model, splits.test)
    torch.save({"logits": logits, "accuracy": accuracy}, LOGITS)
    OUT.print("\nA logistic regression on the frozen backbone, to compare with:")
    probe = frozen_probe(splits.train, splits.test)

    count = sum(parameter.numel() for parameter in delta.parameters())
    table = Table("", "trained parameters", f"accuracy on {len(splits.test):,} held-out sentences", box=None)
    table.add_row("majority", "0", f"{majority(splits.test):.3f}")
    table.add_row("frozen backbone, mean-pooled probe", "385", f"{probe:.3f}")
    table.add_row("LoRA delta and classifier head", f"{count + 770:,}", f"{accuracy:.3f}")
    OUT.print(table)

    delta.save_finetuned(
        CHECKPOINT,
        center_args={
            "train_tasks": "sentiment",
            "train_datasets": "movie-reviews",
            "backbone_model": "all-MiniLM-L6-v2",
            "license": "apache-2.0",
        },
        test_result={"accuracy": round(accuracy, 4)},
        usage="Labels: 0 is negative, 1 is positive. Sentences of up to 64 tokens.",
    )
    STAGE.run("deltahub", "push", "./ckpt", "--tags", "sentiment,task=movie-reviews")
    STAGE.run("deltahub", "list")
    STAGE.run("deltahub", "pull", NAME, elsewhere=True)
    STAGE.run(sys.executable, str(Path(__file__)), "--load", NAME, elsewhere=True)
    show_refusals(new_backbone(seed=7), CHECKPOINT, STAGE.work)


def validate(rates: list[float]) -> None:
    """Print the validation accuracy of learning rates; the test split is not looked at."""
    splits = sentences()
    for rate in rates:
        _, accuracy = predict(trained(splits, rate).backbone_model, splits.validation)
        OUT.print(f"learning rate {rate:g}: {accuracy:.4f} on {len(splits.validation):,} validation sentences")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", metavar="REFERENCE", help="load a delta in this process and compare")
    parser.add_argument("--validate", metavar="RATE", type=float, nargs="+", help="compare learning rates")
    options = parser.parse_args()
    if options.load:
        load_elsewhere(options.load)
    elif options.validate:
        validate(options.validate)
    else:
        whole_story()


if __name__ == "__main__":
    main()
