"""AdaLoRA distributes its ranks over the modules while it trains, as PEFT does, and keeps what it chose."""

import warnings

import pytest
import torch

from deltahub import AdaLoraModel, AutoDeltaModel, diff, export_peft
from deltahub.errors import ConfigError, MergeError, NoMatchError
from tests.backbones import bert, gpt2, inputs_for, logits_of, stir, untouched

BUDGET = {"init_r": 4, "target_r": 2, "total_step": 12, "tinit": 2, "tfinal": 3, "deltaT": 2}


def loss_of(backbone, step):
    draw = torch.Generator().manual_seed(step)
    return (backbone(**inputs_for(backbone)).logits * torch.randn(3, generator=draw)).sum()


def trained(backbone, delta, steps, rate=0.05):
    delta.freeze_module()
    optimizer = torch.optim.SGD(delta.parameters(), rate)
    for step in range(steps):
        (loss_of(backbone, step) + delta.regularisation()).backward()
        optimizer.step()
        delta.update_budget(step)
        optimizer.zero_grad()
    return delta


def test_it_trains_and_prunes_exactly_as_peft():
    peft = pytest.importorskip("peft")
    backbone = bert()
    delta = AdaLoraModel(backbone, modified_modules=["query", "value"], **BUDGET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.AdaLoraConfig(target_modules=["query", "value"], **BUDGET)
        twin = peft.get_peft_model(bert(), config)
    sides = {name: twin.base_model.model.get_submodule(name) for name in delta.insertions}
    with torch.no_grad():
        for name, update in delta.insertions.items():
            for side in "AB":
                getattr(update, f"lora_{side}").copy_(getattr(sides[name], f"lora_{side}")["default"])
    twin.eval()
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], 0.05)
    for step in range(BUDGET["total_step"]):
        regular = sum(
            torch.norm(m - torch.eye(4))
            for layer in sides.values()
            for m in (
                layer.lora_A["default"] @ layer.lora_A["default"].T,
                layer.lora_B["default"].T @ layer.lora_B["default"],
            )
        )
        (loss_of(twin, step) + 0.5 * regular / (2 * len(sides))).backward()
        optimizer.step()
        twin.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    trained(backbone, delta, BUDGET["total_step"])

    torch.testing.assert_close(logits_of(backbone), logits_of(twin))
    assert sum(delta.ranks.values()) == 2 * len(sides)
    for name, update in delta.insertions.items():
        assert torch.equal(update.lora_E != 0, sides[name].lora_E["default"].flatten() != 0)


def test_pruning_removes_what_is_off_and_keeps_the_outputs(tmp_path):
    backbone = bert()
    delta = trained(backbone, AdaLoraModel(backbone, **BUDGET), BUDGET["total_step"])
    expected, before = logits_of(backbone), sum(p.numel() for p in delta.parameters())
    ranks = delta.prune()
    assert sum(delta.ranks.values()) == 2 * len(ranks)
    assert ranks == {address: max(1, rank) for address, rank in delta.ranks.items()}
    assert sum(p.numel() for p in delta.parameters()) < 0.7 * before
    torch.testing.assert_close(logits_of(backbone), expected)

    delta.save_finetuned(tmp_path / "delta")
    again = bert()
    loaded = AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=again)
    assert loaded.ranks == delta.ranks
    assert torch.equal(logits_of(again), logits_of(backbone))
    with pytest.raises(ConfigError, match="ranks are final"):
        loaded.update_budget(0)


def test_a_pruned_delta_is_an_adapter_of_peft_with_its_rank_pattern(tmp_path):
    peft = pytest.importorskip("peft")
    backbone = bert()
    delta = trained(backbone, AdaLoraModel(backbone, modified_modules=["query"], **BUDGET), BUDGET["total_step"])
    with torch.no_grad():  # one module without any rank
        delta.insertions["bert.encoder.layer.0.attention.self.query"].lora_kept.zero_()
        delta.insertions["bert.encoder.layer.0.attention.self.query"].mask()
    stirred = logits_of(backbone)
    delta.prune()
    delta.save_finetuned(tmp_path / "delta")
    export_peft(tmp_path / "delta", tmp_path / "peft", backbone=bert())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = peft.PeftModel.from_pretrained(bert(), tmp_path / "peft").eval()
    again = bert()
    AutoDeltaModel.from_finetuned(tmp_path / "peft", backbone_model=again)

    torch.testing.assert_close(logits_of(back), stirred)
    torch.testing.assert_close(logits_of(again), stirred)


def test_parts_of_a_fused_layer_have_ranks_of_their_own_until_they_are_pruned():
    backbone = gpt2()
    delta = AdaLoraModel(backbone, init_r=4, target_r=2)
    stir(delta)
    fused = next(iter(delta.insertions.values()))
    fused.q.lora_kept[1:] = False
    fused.q.mask()
    expected = logits_of(backbone)
    assert set(delta.prune().values()) == {4}
    torch.testing.assert_close(logits_of(backbone), expected)


def test_a_trainer_keeps_the_budget(tmp_path):
    from transformers import Trainer, TrainingArguments

    backbone = bert()
    delta = AdaLoraModel(backbone, init_r=4, target_r=2, total_step=4)
    delta.freeze_module()
    rows = [{"input_ids": torch.randint(1, 50, (7,)), "labels": torch.tensor(row % 3)} for row in range(4)]
    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    Trainer(backbone, arguments, train_dataset=rows, callbacks=[delta.trainer_callback()]).train()
    assert sum(delta.ranks.values()) == 2 * len(delta.insertions)
    assert delta.config.rank_pattern

    longer = AdaLoraModel(bert(), total_step=9)
    with pytest.raises(ConfigError, match="total_step of the AdaLoRA is 9, and the Trainer makes 4 steps"):
        Trainer(longer.backbone_model, arguments, train_dataset=rows, callbacks=[longer.trainer_callback()]).train()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target_r": 13}, "target_r is 13, more than init_r"),
        ({"total_step": 5, "tinit": 3, "tfinal": 2}, "no step is left in which the ranks shrink"),
        ({"init_r": 0}, "init_r must be"),
        ({"lora_alpha": 0}, "lora_alpha must be"),
    ],
)
def test_options_that_cannot_work_are_refused(options, why):
    backbone = bert()
    with untouched(backbone), pytest.raises(ConfigError, match=why):
        AdaLoraModel(backbone, **options)


def test_a_budget_needs_its_length_gradients_and_weights_of_its_own():
    delta = AdaLoraModel(bert())
    with pytest.raises(ConfigError, match="total_step, which is not set"):
        delta.update_budget(0)
    delta = AdaLoraModel(bert(), total_step=5)
    with pytest.raises(ConfigError, match="has no gradient"):
        delta.update_budget(0)
    stir(delta)
    delta.merge()
    with pytest.raises(MergeError):
        delta.prune()
    with pytest.raises(NoMatchError, match="rank_pattern"):
        AdaLoraModel(bert(), rank_pattern={"nowhere": 3})


def test_deltas_are_computed_with_its_lora_not_with_itself(tmp_path):
    AdaLoraModel(bert()).save_finetuned(tmp_path / "delta")

    with pytest.raises(ConfigError, match=r"of the type adalora.*--as-lora RANK"):
        diff(tmp_path / "delta", tmp_path / "delta")
