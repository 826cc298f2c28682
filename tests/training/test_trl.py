"""TRL's trainers on a backbone with a delta: SFT, DPO and GRPO, whose reference is the backbone with the delta off."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch

from deltahub import AutoDeltaModel, LoraModel
from tests.backbones import equal, llama, logits_of, tensors_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # of TRL and what it imports
]

WORDS = [f"w{number}" for number in range(44)]


@pytest.fixture(scope="module")
def trl() -> Any:
    """TRL, which takes seconds to import."""
    return pytest.importorskip("trl", reason="trl is not installed")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer of words for the 50 tokens of the backbone."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def policy():
    """A backbone whose delta trains."""
    backbone = llama()
    delta = LoraModel(backbone, modified_modules=["q_proj", "v_proj"])
    delta.freeze_module()
    return backbone, delta


def rows(*columns: str) -> Any:
    """A data set with some words in each column."""
    from datasets import Dataset

    texts = [" ".join(WORDS[start + row] for start in range(0, 20, 4)) for row in range(4)]
    return Dataset.from_dict(
        {column: [f"{text} {WORDS[place]}" for text in texts] for place, column in enumerate(columns)}
    )


def options(folder: Any, **more: Any) -> dict[str, Any]:
    """What every trainer here is told: two steps on the CPU."""
    common = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
    }
    return {
        "output_dir": str(folder),
        "learning_rate": 0.05,
        "logging_steps": 1,
        "disable_tqdm": True,
        **common,
        **more,
    }


def require_trained(delta: Any, folder: Any) -> None:
    """The delta trained, nothing else did, and it loads on a fresh backbone with the same outputs."""
    backbone, bare = delta.backbone_model, llama()
    after = logits_of(backbone.eval())
    delta.save_finetuned(folder / "delta")
    with delta.off():
        assert torch.equal(logits_of(bare), logits_of(backbone))
    assert not torch.equal(logits_of(bare), after)
    AutoDeltaModel.from_finetuned(folder / "delta", bare)
    assert torch.equal(after, logits_of(bare))


def test_supervised_fine_tuning(trl, tokenizer, policy, tmp_path):
    backbone, delta = policy
    args = trl.SFTConfig(**options(tmp_path, max_length=10, gradient_checkpointing=False))
    trainer = trl.SFTTrainer(model=backbone, args=args, train_dataset=rows("text"), processing_class=tokenizer)
    trainer.train()

    require_trained(delta, tmp_path)


def test_the_reference_of_dpo_is_the_backbone_with_the_delta_off(trl, tokenizer, policy, tmp_path):
    backbone, delta = policy
    reference = delta.reference()
    args = trl.DPOConfig(**options(tmp_path, max_length=12, gradient_checkpointing=False))
    data = rows("prompt", "chosen", "rejected")
    trainer = trl.DPOTrainer(
        model=backbone, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer
    )
    trainer.train()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)  # policy and reference are equal at first
    assert losses[1] < losses[0] - 1e-4
    assert equal(tensors_of(llama()), tensors_of(reference))
    require_trained(delta, tmp_path)


def test_the_reference_of_grpo_is_the_backbone_with_the_delta_off(trl, tokenizer, policy, tmp_path):
    backbone, delta = policy
    reference = delta.reference()
    sizes = {"num_generations": 2, "max_completion_length": 4, "beta": 0.1, "gradient_checkpointing": False}
    args = trl.GRPOConfig(**options(tmp_path, **sizes))
    with mock.patch("trl.trainer.grpo_trainer.create_model_from_path", return_value=reference):
        trainer = trl.GRPOTrainer(
            model=backbone,
            args=args,
            reward_funcs=lambda completions, **rest: [
                float(len(set(text.split()))) + row for row, text in enumerate(completions)
            ],
            train_dataset=rows("prompt"),
            processing_class=tokenizer,
        )
    assert trainer.accelerator.unwrap_model(trainer.ref_model) is reference
    trainer.train()

    divergences = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert divergences[0] == pytest.approx(0, abs=1e-5)
    assert divergences[1] > 1e-5
    assert equal(tensors_of(llama()), tensors_of(reference))
    require_trained(delta, tmp_path)
