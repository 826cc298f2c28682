"""transformers' Trainer trains the backbone; the delta is in it, so its checkpoints hold the delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from deltahub import AutoDeltaModel, deltas_of
from tests.backbones import bert, equal
from tests.grids import ALL
from tests.training.matrix import HEADED, KINDS, answers, in_order, labelled_rows, put_on, require_carries_over

pytestmark = pytest.mark.slow  # every delta type is trained

STEPS = 4
EVERY_SECOND_STEP = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def trainer(backbone: nn.Module, folder: Path, **options: Any) -> Trainer:
    """A Trainer that evaluates and saves after every second of four steps."""
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **{**EVERY_SECOND_STEP, "learning_rate": 1e-2, **options},
    )
    return Trainer(backbone, arguments, train_dataset=labelled_rows(), eval_dataset=labelled_rows(8))


class SaveDeltas(TrainerCallback):
    """The callback of docs/training.md: every checkpoint folder is a delta's folder too."""

    def on_save(self, args, state, control, model, **rest):
        if state.is_world_process_zero:
            for name, delta in deltas_of(model).items():
                delta.save_finetuned(Path(args.output_dir, f"checkpoint-{state.global_step}", name))


def tensors_in(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """What a Trainer's checkpoint holds, with the names that the delta called `name` gives its tensors."""
    tensors = load_file(checkpoint / "model.safetensors")
    return {key.replace(f"deltas.{name}.", "deltas."): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_is_trained_kept_in_checkpoints_and_resumed_from_them(kind, tmp_path, caplog):
    whole, resumed = bert(), bert()
    delta = put_on(whole, kind, train=HEADED)
    before = {name: tensor.clone() for name, tensor in delta.state_dict().items()}
    put_on(resumed, kind, train=HEADED, seed=99)  # another start: what counts comes from the checkpoint
    trainer(whole, tmp_path / "whole", eval_strategy="no").train()
    trainer(resumed, tmp_path / "resumed", eval_strategy="no").train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")
    )

    assert not equal(before, delta.state_dict())
    last = tensors_in(tmp_path / "whole" / "checkpoint-4", delta.name)  # what trains and nothing else
    assert equal(in_order(delta.state_dict()), in_order(last))
    assert torch.equal(answers(whole), answers(resumed))
    assert "missing keys" not in caplog.text
    require_carries_over(delta, tmp_path / "delta")


# What a checkpoint holds of each type is shown above; here the types are some of them.
@pytest.mark.parametrize("kind", KINDS if ALL else KINDS[::4])
def test_the_best_checkpoint_is_loaded_at_the_end_and_a_callback_makes_each_loadable(kind, tmp_path):
    backbone, fresh = bert(), bert()
    delta = put_on(backbone, kind, train=HEADED)
    run = trainer(backbone, tmp_path, load_best_model_at_end=True, greater_is_better=True)  # so the earlier
    run.add_callback(SaveDeltas())
    run.train()

    assert str(tmp_path / "checkpoint-2") == run.state.best_model_checkpoint
    assert equal(in_order(tensors_in(tmp_path / "checkpoint-2", delta.name)), in_order(delta.state_dict()))
    AutoDeltaModel.from_finetuned(tmp_path / "checkpoint-2" / delta.name, backbone_model=fresh)
    assert torch.equal(answers(backbone), answers(fresh))


def test_a_checkpoint_that_lacks_a_part_of_the_backbone_is_still_missed():
    backbone = bert()
    whole = backbone.state_dict()
    put_on(backbone, KINDS[0])
    del whole["bert.pooler.dense.bias"]

    with pytest.raises(RuntimeError, match=r"pooler\.dense\.bias"):
        backbone.load_state_dict({**whole, **backbone.state_dict()})


def test_tensors_left_out_of_the_state_dict_are_not_missing_inside_a_wrapper():
    wrapper = nn.ModuleDict({"encoder": bert(), "probe": nn.Linear(3, 1)})
    put_on(wrapper["encoder"], KINDS[0])
    state = wrapper.state_dict()
    assert any("deltas" in name for name in state)
    assert not any("embeddings" in name for name in state)

    wrapper.load_state_dict(state)
    del state["probe.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"probe\.bias\"\."):
        wrapper.load_state_dict(state)
