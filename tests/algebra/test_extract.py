"""A delta extracted from two models."""

import pytest
import torch
import transformers
from torch import nn

from deltahub import AutoDeltaModel, extract
from deltahub.errors import CheckpointError, ConfigError, FingerprintMismatch
from tests.algebra.making import config_of, tensors_in, updates_of
from tests.backbones import bert, bert_mlm, gpt2, llama, logits_of, t5


def tuned(make, *, only=""):
    """A model after training: every tensor with `only` in its name has moved."""
    model = make()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


@pytest.fixture
def models(tmp_path):
    """Save a model before and after training."""

    def save(make, **options):
        make().save_pretrained(tmp_path / "base")
        tuned(make, **options).save_pretrained(tmp_path / "tuned", max_shard_size="4KB")
        return tmp_path / "base", tmp_path / "tuned"

    return save


@pytest.mark.parametrize("make", [bert, bert_mlm, gpt2, llama, t5])
def test_at_full_rank_the_base_becomes_the_tuned_model(models, tmp_path, make):
    base, fine = models(make)
    result = extract(base, fine, tmp_path / "delta", rank=64)
    backbone = make()
    AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=backbone)

    assert torch.allclose(logits_of(backbone), logits_of(tuned(make)), atol=1e-4)
    assert max(change.error for change in result.changes) < 1e-5
    matrices = [m for m in make().modules() if isinstance(m, nn.Linear | transformers.pytorch_utils.Conv1D)]
    assert len(matrices) - 1 <= len(result.changes) <= len(matrices)  # one may share the weight of the embedding


def test_a_low_rank_is_nearly_the_best_and_tells_its_error(models, tmp_path):
    base, fine = models(bert, only="query.weight")
    result = extract(base, fine, tmp_path / "delta", rank=3)
    before, after = (dict(bert_model.state_dict()) for bert_model in (bert(), tuned(bert, only="query.weight")))
    updates = updates_of(tmp_path / "delta")

    assert result.trained == ()
    assert {c.module for c in result.changes} == {f"bert.encoder.layer.{n}.attention.self.query" for n in (0, 1)}
    for report in result.changes:
        whole = (after[f"{report.module}.weight"] - before[f"{report.module}.weight"]).double()
        lost = float((updates[report.module] - whole).norm())
        assert report.error == pytest.approx(lost / float(whole.norm()), rel=1e-3)
        assert lost == pytest.approx(float(torch.linalg.svdvals(whole)[3:].norm()), rel=1e-3)


def test_an_energy_decides_the_rank_of_each_update(models, tmp_path):
    result = extract(*models(bert), tmp_path / "delta", energy=0.7)
    assert all(change.error**2 <= 0.3 for change in result.changes)
    assert len({change.rank for change in result.changes}) > 1
    assert max(c.rank for c in extract(*models(bert), tmp_path / "small", energy=0.7, rank=2).changes) == 2


def test_the_rest_is_kept_as_trained_tensors(models, tmp_path):
    result = extract(*models(bert), tmp_path / "delta", rank=2)
    saved, after = tensors_in(tmp_path / "delta"), dict(tuned(bert).named_parameters())

    assert "bert.embeddings.word_embeddings.weight" in result.trained
    assert "bert.encoder.layer.0.attention.output.LayerNorm.weight" in result.trained
    assert "classifier.bias" in result.trained
    assert all(torch.equal(saved[name], after[name]) for name in result.trained)
    assert config_of(tmp_path / "delta")["lineage"]["parameters"].keys() == {"rank", "base", "tuned"}


def test_the_delta_belongs_to_the_base(models, tmp_path):
    extract(*models(bert), tmp_path / "delta", rank=2)
    with pytest.raises(FingerprintMismatch):
        AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=bert(seed=5))


def test_a_new_head_is_kept_whole(tmp_path):
    bert().bert.save_pretrained(tmp_path / "base")
    tuned(bert, only="query.weight").save_pretrained(tmp_path / "tuned")
    result = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", rank=16)
    fresh = bert()
    nn.init.zeros_(fresh.classifier.weight)
    AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=fresh)

    assert result.trained == ("classifier.bias", "classifier.weight")
    assert torch.allclose(logits_of(fresh), logits_of(tuned(bert, only="query.weight")), atol=1e-5)


def test_another_precision_alone_is_no_change(tmp_path):
    bert().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    fine = bert().to(torch.bfloat16).float()
    with torch.no_grad():
        fine.classifier.weight += 1
    fine.save_pretrained(tmp_path / "tuned")
    result = extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", rank=4)

    assert ([change.module for change in result.changes], result.trained) == (["classifier"], ())


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (lambda: bert(hidden_size=24), {"rank": 2}, r"is \[16\] in .* and \[24\] in .*resize_token_embeddings"),
        (llama, {"rank": 2}, "it is not its base"),
        (bert, {"rank": 2}, "have the same values"),
        (bert, {}, "takes a rank"),
        (bert, {"rank": 0}, "at least 1"),
        (bert, {"energy": 2}, "at most 1"),
    ],
)
def test_models_that_do_not_belong_together_are_refused(tmp_path, make, options, reason):
    bert().save_pretrained(tmp_path / "base")
    make().save_pretrained(tmp_path / "tuned")
    with pytest.raises((CheckpointError, ConfigError), match=reason):
        extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", **options)
    assert not (tmp_path / "delta").exists()


def test_other_folders_quantised_models_and_values_that_are_not_finite_are_refused(models, tmp_path):
    base, fine = models(bert, only="bias")
    with pytest.raises(CheckpointError, match="differ in no weight of a linear layer"):
        extract(base, fine, tmp_path / "delta", rank=2)
    with pytest.raises(CheckpointError, match="neither the folder of a backbone nor a model"):
        extract(base, tmp_path / "nowhere", tmp_path / "delta", rank=2)
    config = (fine / "config.json").read_text()
    (fine / "config.json").write_text(config.replace("{", '{"quantization_config": {},', 1))
    with pytest.raises(ConfigError, match="is a quantised model"):
        extract(base, fine, tmp_path / "delta", rank=2)
    broken = bert()
    nn.init.constant_(broken.classifier.weight, float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(CheckpointError, match=r"classifier.weight holds values that are not finite"):
        extract(base, tmp_path / "broken", tmp_path / "delta", rank=2)
