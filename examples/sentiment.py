"""Train a LoRA on real sentences, publish it, fetch it in another process, and load it verified.

    python examples/sentiment.py                         the whole story (about four minutes on two cores)
    python examples/sentiment.py --validate 1e-3 2e-3    validation accuracy of learning rates, to choose one

`DEMO_STEPS=4` makes a short run on a few sentences, whose accuracy says nothing. Everything is written below `.cache/`; your own registry is not touched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from movie_reviews import (
    BATCH_SIZE,
    Batch,
    Example,
    Splits,
    evaluation_batches,
    fetch,
    frozen_probe,
    load_splits,
    load_tokenizer,
    majority,
    training_batches,
)
from refusals import show_refusals
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup, logging

from deltahub import AutoDeltaModel, LoraModel

CACHE: Final = Path(__file__).parents[1] / ".cache"
WORK: Final = CACHE / os.environ.get("DEMO_WORK", "demo")
CHECKPOINT: Final = WORK / "ckpt"
LOGITS: Final = WORK / "logits.pt"
LEARNING_RATE: Final = 2e-3  # the best of those tried on the validation split: docs/sentiment.md
TRAIN_SEED: Final = 1
NAME: Final = "DeltaHub/sentiment-all-MiniLM-L6-v2"  # what `deltahub push` makes of the checkpoint's task and backbone
OUT: Final = Console(highlight=False)


def new_backbone(model: Path, seed: int) -> nn.Module:
    """Load the backbone with a fresh, random classifier head.

    Args:
        model: the backbone's folder.
        seed: of the head.
    """
    logging.set_verbosity_error()  # that the head is fresh is the point
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    backbone: nn.Module = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2, local_files_only=True)
    return backbone


def train(model: Path, examples: list[Example], learning_rate: float, steps: int | None = None) -> LoraModel:
    """Train LoRA on every linear layer of the encoder, and the classifier head, for one pass over the examples.

    Args:
        steps: stop after so many batches.
    """
    backbone = new_backbone(model, TRAIN_SEED)
    delta = LoraModel(backbone, lora_r=8, lora_alpha=16, modified_modules=["query", "key", "value", "dense"])
    delta.freeze_module(exclude=["deltas", "classifier"])
    batches = list(islice(training_batches(examples, load_tokenizer(model), seed=TRAIN_SEED), steps))
    trainable = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * len(batches)), len(batches))
    backbone.train()
    for batch in track(batches, "Training", console=OUT):
        loss = backbone(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    backbone.eval()
    return delta


@torch.no_grad()
def predict(backbone: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, float]:
    """The logits of every example, ``(rows, 2)``, and the share of right answers."""
    logits, labels = [], []
    for batch in batches:
        labels.append(batch["labels"])
        logits.append(backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits)
    answers = torch.cat(logits)
    return answers, (answers.argmax(1) == torch.cat(labels)).double().mean().item()


def sentences(ratings: Path, steps: int | None) -> Splits:
    """The splits, or with `steps` just enough of each for so many batches."""
    splits = load_splits(ratings)
    return splits if steps is None else Splits(*(split[: steps * BATCH_SIZE] for split in splits))


def command(*arguments: str, **variables: str) -> None:
    """Run a command of the same environment and show it."""
    shown = " ".join(Path(argument).name if Path(argument).is_absolute() else argument for argument in arguments)
    OUT.print(f"\n[bold]$ {shown}[/bold]")
    program = shutil.which(arguments[0], path=str(Path(sys.executable).parent)) or arguments[0]
    subprocess.run([program, *arguments[1:]], check=True, env={**os.environ, **variables}, cwd=WORK)


def load_elsewhere(reference: str, steps: int | None) -> None:
    """In a new process, with an empty cache: pull the delta, load it on a fresh backbone, and compare."""
    model, ratings = fetch(CACHE)
    test = sentences(ratings, steps).test
    backbone = new_backbone(model, seed=12345)  # another head: the delta brings its own
    delta = AutoDeltaModel.from_finetuned(reference, backbone_model=backbone)
    logits, accuracy = predict(backbone, evaluation_batches(test, load_tokenizer(model)))
    trained = torch.load(LOGITS, weights_only=True)
    OUT.print(f"Loaded {reference} on a fresh backbone: {delta!r}")
    OUT.print(f"accuracy {accuracy:.4f}, as trained {trained['accuracy']:.4f}")
    difference = (logits - trained["logits"]).abs().max().item()
    OUT.print(f"largest difference of a logit over {len(test):,} sentences: {difference}")
    if difference != 0 or accuracy != trained["accuracy"]:
        sys.exit("The loaded delta does not answer as the trained one did.")


def whole_story(steps: int | None) -> None:
    """Train, compare, save, push, list, pull, load, and refuse."""
    model, ratings = fetch(CACHE)
    splits = sentences(ratings, steps)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    os.environ |= {"DELTAHUB_HOME": str(WORK / "home"), "DELTAHUB_CACHE": str(WORK / "cache")}

    delta = train(model, splits.train, LEARNING_RATE, steps)
    delta.log()
    logits, accuracy = predict(delta.backbone_model, evaluation_batches(splits.test, load_tokenizer(model)))
    torch.save({"logits": logits, "accuracy": accuracy}, LOGITS)
    OUT.print("\nA logistic regression on the frozen backbone, to compare with:")
    probe = frozen_probe(model, splits.train, splits.test)

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
    command("deltahub", "push", "./ckpt", "--tags", "sentiment,task=movie-reviews")
    command("deltahub", "list")
    empty = str(WORK / "empty-cache")
    command("deltahub", "pull", NAME, DELTAHUB_CACHE=empty)
    command(sys.executable, str(Path(__file__)), "--load", NAME, DELTAHUB_CACHE=empty)
    show_refusals(new_backbone(model, seed=7), CHECKPOINT, WORK)


def validate(rates: list[float], steps: int | None) -> None:
    """Print the validation accuracy of learning rates; the test split is not looked at."""
    model, ratings = fetch(CACHE)
    splits = sentences(ratings, steps)
    for rate in rates:
        delta = train(model, splits.train, rate, steps)
        _, accuracy = predict(delta.backbone_model, evaluation_batches(splits.validation, load_tokenizer(model)))
        OUT.print(f"learning rate {rate:g}: {accuracy:.4f} on {len(splits.validation):,} validation sentences")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", metavar="REFERENCE", help="load a delta in this process and compare")
    parser.add_argument("--validate", metavar="RATE", type=float, nargs="+", help="compare learning rates")
    options = parser.parse_args()
    steps = int(os.environ["DEMO_STEPS"]) if os.environ.get("DEMO_STEPS") else None
    if options.load:
        load_elsewhere(options.load, steps)
    elif options.validate:
        validate(options.validate, steps)
    else:
        whole_story(steps)


if __name__ == "__main__":
    main()
