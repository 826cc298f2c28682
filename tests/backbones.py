"""The tiny backbones of `deltahub.testing`, those of the original OpenDelta's tables, and settings for both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import nn

from deltahub.testing.backbones import (
    _TEXT,
    BACKBONES,
    _make,
    bert,
    bert_mlm,
    built_once,
    equal,
    forward,
    gpt2,
    inputs_for,
    llama,
    logits_of,
    stir,
    t5,
    t5_gated,
    tensors_of,
    train,
    untouched,
    vit,
)

__all__ = [
    "BACKBONES",
    "OPENDELTA",
    "_TEXT",
    "_make",
    "bert",
    "bert_mlm",
    "built_once",
    "equal",
    "forward",
    "gpt2",
    "inputs_for",
    "llama",
    "logits_of",
    "original",
    "stir",
    "t5",
    "t5_gated",
    "tensors_of",
    "train",
    "untouched",
    "vit",
]

torch.set_num_threads(1)  # more only wait for each other on tensors this small
OPENDELTA = Path(__file__).parent / "fixtures" / "opendelta"


@built_once
def original(name: str, **changes: Any) -> nn.Module:
    """One of the backbones that the tables of the original OpenDelta speak of, with random weights."""
    classes = {"roberta_mlm": ("roberta", "RobertaForMaskedLM"), "t5_enc": ("t5", "T5EncoderModel")}
    folder, kind = classes.get(name, (name, ""))
    config = transformers.AutoConfig.from_pretrained(OPENDELTA / "_backbones" / folder, **changes)
    return getattr(transformers, kind or config.architectures[0])(config).eval()
