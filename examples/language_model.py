"""A delta for a language model: LoRA on tweets lowers the perplexity of SmolLM2 on tweets it has not seen.

    python examples/language_model.py      the whole story

`DEMO_STEPS=2` makes a short run, whose figures say nothing; so does a tiny model whose folder `DEMO_BACKBONE` names, on the lines of
the file that `DEMO_TEXTS` names. Everything is written below `.cache/`; your own registry is not
touched. Needs the extra `examples`.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from packages import FetchError
from rich.table import Table
from sentences import load_splits
from smollm2 import batches, fetch_model, new_backbone
from stage import OUT, STEPS, Stage, steps_of
from torch import nn
from transformers import get_linear_schedule_with_warmup

from deltahub import AutoDeltaModel, LoraModel

STAGE: Final = Stage("language-model")
RESULT: Final = STAGE.work / "perplexity.txt"
BATCH_SIZE: Final = 16 if STEPS is None else 4
TRAINING_STEPS: Final = STEPS or 12
HELD_OUT: Final = 64 if STEPS is None else 8
LEARNING_RATE: Final = 2e-3
SEED: Final = 0
NAME: Final = "DeltaHub/tweets-SmolLM2-135M"
UNREACHABLE: Final = 69  # EX_UNAVAILABLE: the backbone or the tweets could not be had


def tweets() -> tuple[list[str], list[str]]:
    """Return tweets for training and for evaluation; or the first and the last lines of the file in `DEMO_TEXTS`."""
    count = TRAINING_STEPS * BATCH_SIZE
    if texts := os.environ.get("DEMO_TEXTS"):
        lines = Path(texts).read_text(encoding="utf-8").splitlines()
        return lines[:count], lines[-HELD_OUT:]
    splits = load_splits("tweets")
    return [example.text for example in splits.train[:count]], [example.text for example in splits.test[:HELD_OUT]]


def train(backbone: nn.Module, texts: Sequence[str]) -> LoraModel:
    """Train a LoRA on the queries and values, on every text once."""
    torch.manual_seed(SEED)
    delta = LoraModel(backbone, lora_r=8, lora_alpha=16, modified_modules=["q_proj", "v_proj"])
    delta.freeze_module(exclude=["deltas"])
    parameters = list(delta.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    schedule = get_linear_schedule_with_warmup(optimizer, min(3, TRAINING_STEPS - 1), TRAINING_STEPS)
    backbone.train()
    for batch in steps_of(batches(texts, BATCH_SIZE), "Training", TRAINING_STEPS):
        backbone(**batch).loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    backbone.eval()
    return delta


@torch.no_grad()
def perplexity(backbone: nn.Module, texts: Sequence[str]) -> float:
    """Compute the perplexity: the exponential of the mean loss over all tokens but the first of each text."""
    total, tokens = 0.0, 0
    for batch in batches(texts, BATCH_SIZE):
        count = int((batch["labels"][:, 1:] != -100).sum())
        total += backbone(**batch).loss.item() * count
        tokens += count
    return math.exp(total / tokens)


def load_elsewhere(reference: str) -> None:
    """Pull the delta in a new process with an empty cache, load it on a fresh backbone, and compare."""
    backbone = new_backbone()
    delta = AutoDeltaModel.from_finetuned(reference, backbone_model=backbone)
    found, expected = perplexity(backbone, tweets()[1]), float(RESULT.read_text())
    OUT.print(f"Loaded {reference} on a fresh backbone: {delta!r}", soft_wrap=True)
    OUT.print(f"perplexity {found!r}, as trained {expected!r}")
    if found != expected:
        sys.exit("The loaded delta does not answer as the trained one did.")


def whole_story() -> None:
    """Train, compare, save, push, pull and load."""
    training, held_out = tweets()
    backbone = new_backbone()
    STAGE.clear()
    before = perplexity(backbone, held_out)
    start = time.perf_counter()
    delta = train(backbone, training)
    seconds = time.perf_counter() - start
    after = perplexity(backbone, held_out)
    RESULT.write_text(repr(after))

    table = Table("", "trained parameters", f"perplexity on {len(held_out)} held-out tweets", box=None)
    table.add_row("SmolLM2-135M", "0", f"{before:.1f}")
    count = sum(parameter.numel() for parameter in delta.parameters())
    table.add_row(f"with a LoRA, {TRAINING_STEPS} steps, {seconds:.0f} s", f"{count:,}", f"{after:.1f}")
    OUT.print(table)
    delta.save_finetuned(
        STAGE.work / "ckpt",
        center_args={
            "name": NAME.partition("/")[2],
            "train_tasks": "language-modeling",
            "train_datasets": "tweets",
            "license": "apache-2.0",
        },
        test_result={"perplexity": round(after, 2)},
    )
    STAGE.run("deltahub", "push", "./ckpt", NAME, "--tags", "tweets")
    STAGE.run(sys.executable, str(Path(__file__)), "--load", NAME, elsewhere=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", metavar="REFERENCE", help="load a delta in this process and compare")
    parser.add_argument("--fetch", action="store_true", help="only fetch the backbone and the tweets")
    options = parser.parse_args()
    try:
        fetch_model()
        tweets()
    except FetchError as error:
        print(error, file=sys.stderr)
        sys.exit(UNREACHABLE)
    if options.load:
        load_elsewhere(options.load)
    elif not options.fetch:
        whole_story()


if __name__ == "__main__":
    main()
