"""The trainer of sentence-transformers on an encoder with a delta."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deltahub import AutoDeltaModel, LoraModel
from tests.backbones import bert

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

WORDS = [f"w{number}" for number in range(44)]


@pytest.fixture
def encoder(tmp_path: Any) -> Any:
    """A sentence encoder: a BERT, and the mean over its tokens."""
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    from transformers import BertTokenizer

    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), "utf-8"
    )
    bert().bert.save_pretrained(tmp_path / "bert")
    BertTokenizer(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    return sentence_transformers.SentenceTransformer(str(tmp_path / "bert"), device="cpu")


def test_the_trainer_trains_the_delta_which_loads_on_the_encoder_alone(encoder, tmp_path):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    backbone = encoder[0].auto_model
    delta = LoraModel(backbone, modified_modules=["query", "value"])
    delta.freeze_module()
    before = encoder.encode(WORDS[:3], convert_to_tensor=True)
    rows = {"first": WORDS[:8], "second": WORDS[8:16], "score": [1.0, 0.0] * 4}
    args = SentenceTransformerTrainingArguments(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        learning_rate=0.05,
    )
    loss = CosineSimilarityLoss(encoder)
    SentenceTransformerTrainer(model=encoder, args=args, train_dataset=Dataset.from_dict(rows), loss=loss).train()
    encoder.eval()
    after = encoder.encode(WORDS[:3], convert_to_tensor=True)
    delta.save_finetuned(tmp_path / "delta")

    assert not torch.equal(before, after)
    with delta.off():
        assert torch.equal(before, encoder.encode(WORDS[:3], convert_to_tensor=True))
    delta.remove()
    AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=backbone)
    assert torch.equal(after, encoder.encode(WORDS[:3], convert_to_tensor=True))
