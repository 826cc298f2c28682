"""What a delta has to beat: logistic regression on the output of the untouched backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from minilm import Batch, evaluation_batches, fetch_model, load_tokenizer
from sentences import Example
from torch import Tensor
from transformers import AutoModel, PreTrainedModel


def frozen_probe(train: Sequence[Example], test: Sequence[Example], *, l2: float = 3.0) -> float:
    """Return the test accuracy of logistic regression on the mean-pooled output of the untouched backbone.

    `l2` weighs half the squared norm of the coefficients beside the summed loss. Of ten values from 0 to 300 the
    default did best on the validation set, with all training examples.
    """
    tokenizer = load_tokenizer()
    backbone = AutoModel.from_pretrained(fetch_model(), local_files_only=True).eval()
    weight, bias = _logistic_regression(*_mean_pooled(backbone, evaluation_batches(train, tokenizer)), l2)
    x, y = _mean_pooled(backbone, evaluation_batches(test, tokenizer))
    return ((x @ weight + bias > 0) == (y > 0)).double().mean().item()


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
