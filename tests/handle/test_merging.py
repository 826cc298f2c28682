import copy
from types import MethodType

import pytest
import torch
from torch import nn

from deltahub import (
    AdapterModel,
    AutoDeltaModel,
    BitFitModel,
    IA3Model,
    LayerNormModel,
    LoraModel,
    merged_copy,
)
from deltahub.engine.fingerprint import backbone_tensors
from deltahub.engine.site import is_delta_name
from deltahub.errors import MergeError, TargetError
from tests.backbones import bert, equal, gpt2, llama, logits_of, stir, t5, untouched

MERGEABLE = {
    "lora": {"delta_type": "lora", "lora_r": 2},
    "rslora": {"delta_type": "lora", "lora_r": 2, "use_rslora": True},
    "dora": {"delta_type": "lora", "lora_r": 2, "use_dora": True},
    "ia3": {"delta_type": "ia3"},
    "layer_norm": {"delta_type": "layer_norm"},
}
WITH_BIASES = {"bitfit": {"delta_type": "bitfit"}}  # a layer without a bias has nothing to merge it into


def put(options, backbone):
    """A trained delta of these options on a backbone."""
    delta = AutoDeltaModel.from_config(options, backbone)
    delta.freeze_module()
    stir(delta)
    return delta


def own_tensors(backbone):
    """A copy of the backbone's own tensors; unlike `state_dict()`, frozen ones too."""
    return {name: tensor.detach().clone() for name, tensor in backbone_tensors(backbone)}


CASES = [(name, make) for name in MERGEABLE for make in (bert, gpt2, t5, llama)] + [("bitfit", bert), ("bitfit", gpt2)]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "make"), CASES)
class TestMerge:
    def test_a_merged_delta_gives_the_outputs_of_an_unmerged_one(self, method, make):
        backbone = make()
        delta = put({**MERGEABLE, **WITH_BIASES}[method], backbone)
        expected = logits_of(backbone)
        report = delta.merge()

        assert delta.merged
        assert not any(is_delta_name(name) for name, _ in backbone.named_parameters())
        assert torch.allclose(expected, logits_of(backbone), atol=1e-4 * expected.abs().max().item())
        assert report.rounding
        assert report.max_error == 0.0  # float32 stays float32

    def test_unmerging_restores_every_byte(self, method, make):
        backbone = make()
        delta = put({**MERGEABLE, **WITH_BIASES}[method], backbone)
        own, expected = own_tensors(backbone), logits_of(backbone)
        for _ in range(3):
            delta.merge()
            delta.unmerge()

        assert not delta.merged
        assert equal(own, own_tensors(backbone))
        assert torch.equal(expected, logits_of(backbone))

    def test_a_merged_copy_is_a_plain_model(self, method, make):
        plain = make()
        backbone = make()
        put({**MERGEABLE, **WITH_BIASES}[method], backbone)
        with untouched(backbone):
            twin = merged_copy(backbone)

        expected = logits_of(backbone)
        assert torch.allclose(expected, logits_of(twin), atol=1e-4 * expected.abs().max().item())
        assert list(plain.state_dict()) == list(twin.state_dict())
        assert [name for name, _ in plain.named_modules()] == [name for name, _ in twin.named_modules()]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._state_dict_hooks) for m in twin.modules()]
        assert sum(hooks) == sum(len(m._state_dict_hooks) for m in plain.modules())

    def test_a_merged_delta_is_saved_as_an_unmerged_one(self, method, make, tmp_path):
        backbone = make()
        delta = put({**MERGEABLE, **WITH_BIASES}[method], backbone)
        delta.save_finetuned(tmp_path / "before")
        delta.merge()
        delta.save_finetuned(tmp_path / "merged")

        for file in ("delta.safetensors", "backbone.json"):
            assert (tmp_path / "before" / file).read_bytes() == (tmp_path / "merged" / file).read_bytes()


def test_several_are_merged_on_top_of_each_other():
    backbone = bert()
    own = own_tensors(backbone)
    first, second = put(MERGEABLE["lora"], backbone), put(MERGEABLE["rslora"], backbone)
    both = logits_of(backbone)
    second.detach()
    alone = logits_of(backbone)
    second.attach()
    first.merge()
    second.merge()

    assert torch.allclose(both, logits_of(backbone), atol=1e-4)
    second.unmerge()
    assert first.merged
    first.unmerge()
    second.detach()
    assert torch.equal(alone, logits_of(backbone))
    assert equal(own, own_tensors(backbone))


def test_the_last_merged_delta_is_unmerged_first():
    backbone = bert()
    first, second = put(MERGEABLE["lora"], backbone), put(MERGEABLE["ia3"], backbone)
    first.merge()
    second.merge()

    with (
        untouched(backbone),
        pytest.raises(MergeError, match=r"'ia3' was merged on top of it .*unmerge\(\) that first"),
    ):
        first.unmerge()
    assert second.merged


def test_deltas_of_different_places_come_out_in_any_order():
    backbone = bert()
    own = own_tensors(backbone)
    first, second = put(MERGEABLE["lora"], backbone), put(MERGEABLE["layer_norm"], backbone)
    expected = logits_of(backbone)
    first.merge()
    second.merge()
    first.unmerge()

    assert second.merged
    assert torch.allclose(expected, logits_of(backbone), atol=1e-4)
    second.unmerge()
    assert torch.equal(expected, logits_of(backbone))
    assert equal(own, own_tensors(backbone))


def test_rounding_to_bfloat16_is_reported():
    backbone = bert().bfloat16()
    delta = put(MERGEABLE["lora"], backbone)
    own = own_tensors(backbone)
    exact = {
        name: backbone.get_submodule(name).weight.float() + (16 / 2) * update.lora_B.float() @ update.lora_A.float()
        for name, update in delta.insertions.items()
    }
    report = delta.merge()

    for name, weight in exact.items():
        merged = backbone.get_submodule(name).weight
        assert torch.equal(weight.bfloat16(), merged)
        assert report.rounding[f"{name}.weight"] == pytest.approx(
            (weight - merged.float()).abs().max().item(), rel=1e-3
        )
    assert 0 < report.max_error < 0.1
    delta.unmerge()
    assert equal(own, own_tensors(backbone))


class TestRefusals:
    def test_merging_twice(self):
        backbone = bert()
        delta = put(MERGEABLE["lora"], backbone)
        delta.merge()

        with untouched(backbone), pytest.raises(MergeError, match=r"merged already\. Call unmerge\(\)"):
            delta.merge()

    def test_unmerging_an_unmerged_delta(self):
        delta = put(MERGEABLE["lora"], bert())

        with pytest.raises(MergeError, match="is not merged"):
            delta.unmerge()

    def test_merging_a_detached_delta(self):
        backbone = bert()
        delta = put(MERGEABLE["lora"], backbone)
        delta.detach()

        with untouched(backbone), pytest.raises(MergeError, match="is detached"):
            delta.merge()

    @pytest.mark.parametrize("change", ["attach", "detach", "remove"])
    def test_changing_deltas_while_one_is_merged(self, change):
        backbone = bert()
        delta = put(MERGEABLE["lora"], backbone)
        delta.merge()

        with untouched(backbone), pytest.raises(MergeError, match=r"unmerge\(\) first"):
            getattr(delta, change)()

    def test_loading_tensors_or_freezing_while_one_is_merged(self):
        backbone = bert()
        delta = put(MERGEABLE["lora"], backbone)
        tensors = delta.state_dict()
        delta.merge()

        for change in (lambda: delta.load_state_dict(tensors), delta.freeze_module):
            with untouched(backbone), pytest.raises(MergeError, match=r"unmerge\(\) first"):
                change()

    def test_adding_a_delta_to_a_merged_backbone(self, tmp_path):
        backbone = bert()
        delta = put(MERGEABLE["lora"], backbone)
        delta.save_finetuned(tmp_path)
        delta.merge()

        with untouched(backbone), pytest.raises(MergeError, match="deltas need the original weights"):
            LoraModel(backbone)
        with untouched(backbone), pytest.raises(MergeError, match="deltas need the original weights"):
            AutoDeltaModel.from_finetuned(tmp_path, backbone_model=backbone)

    def test_methods_that_are_no_change_of_weights(self):
        backbone = bert()
        delta = AdapterModel(backbone)

        with untouched(backbone), pytest.raises(MergeError, match="the effect of a Bottleneck cannot be written"):
            delta.merge()

    def test_a_layer_without_a_bias_has_none_to_add_to(self):
        backbone = t5()
        delta = BitFitModel(backbone)

        with untouched(backbone), pytest.raises(MergeError, match="no bias of its own"):
            delta.merge()

    def test_tied_weights(self):
        backbone = gpt2()
        delta = LoraModel(backbone, modified_modules=["wte"])
        stir(delta)

        with (
            untouched(backbone),
            pytest.raises(MergeError, match=r"wte\.weight is also lm_head\.weight \(tied weights\)"),
        ):
            delta.merge()

    def test_dropout_in_training(self):
        backbone = bert()
        delta = LoraModel(backbone, lora_dropout=0.5)
        backbone.train()

        with untouched(backbone), pytest.raises(MergeError, match=r"call eval\(\)"):
            delta.merge()
        backbone.eval()
        assert delta.merge().rounding

    def test_another_delta_that_acts_before(self):
        backbone = bert()
        adapter = AdapterModel(backbone, modified_modules=["query"])
        delta = put(MERGEABLE["lora"], backbone)

        with untouched(backbone), pytest.raises(MergeError, match=r"'adapter' acts on .*query too"):
            delta.merge()
        adapter.detach()
        assert delta.merge().rounding

    @pytest.mark.parametrize("order", [("lora", "dora"), ("dora", "lora")])
    def test_dora_beside_another_delta(self, order):
        backbone = bert()
        first, second = (put(MERGEABLE[name], backbone) for name in order)

        for delta in (first, second):
            with untouched(backbone), pytest.raises(MergeError, match="a merge would change what they do"):
                delta.merge()
        second.detach()
        assert first.merge().rounding

    def test_a_weight_that_is_trained_as_a_whole(self):
        backbone = bert()
        delta = LoraModel(backbone, modified_modules=["classifier"])
        delta.freeze_module(exclude=["deltas", "classifier"])

        with untouched(backbone), pytest.raises(MergeError, match=r"classifier\.weight is trained as a whole"):
            delta.merge()

    def test_a_value_too_large_for_the_precision(self):
        backbone = bert().half()
        delta = LoraModel(backbone)
        with torch.no_grad():
            for parameter in delta.parameters():
                parameter.fill_(200)

        with untouched(backbone), pytest.raises(MergeError, match=r"would not be finite as torch\.float16"):
            delta.merge()


def test_removing_the_last_delta_leaves_no_trace():
    backbone = bert()
    backbone.bert.embeddings.requires_grad_(False)
    with untouched(backbone):
        first, second = LoraModel(backbone), IA3Model(backbone)
        first.freeze_module(exclude=["deltas", "classifier"])
        stir(second)
        with torch.no_grad():
            backbone.classifier.weight.add_(1)
        first.remove()
        assert not torch.equal(logits_of(bert()), logits_of(backbone))
        second.remove()


def test_a_removed_delta_says_so():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.remove()

    for action in (delta.attach, delta.detach, delta.remove, delta.state_dict, delta.merge, delta.freeze_module):
        with untouched(backbone), pytest.raises(TargetError, match="'lora' was removed from this BertFor"):
            action()


def test_merging_on_top_of_a_trained_head_keeps_the_head():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.freeze_module(exclude=["deltas", "classifier"])
    stir(delta)
    with torch.no_grad():
        backbone.classifier.weight.add_(1)
    expected = logits_of(backbone)
    delta.merge()

    assert torch.allclose(expected, logits_of(backbone), atol=1e-4)
    twin = merged_copy(copy.deepcopy(backbone))
    assert torch.equal(backbone.classifier.weight, twin.classifier.weight)


def test_the_offset_of_a_norm_is_merged_whichever_way_the_norm_keeps_its_scale():
    class Gemma(nn.Module):
        """A norm that keeps its scale as 1 + w."""

        def __init__(self):
            super().__init__()
            self.eps, self.weight = 1e-6, nn.Parameter(torch.linspace(-0.5, 0.5, 8))

        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    class GemmaRMSNorm(Gemma):
        pass

    backbone = nn.Sequential(nn.Linear(8, 8), GemmaRMSNorm())
    delta = LayerNormModel(backbone, modified_modules=["1"])
    stir(delta)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = backbone(x)
    delta.merge()

    assert torch.allclose(expected, backbone(x), atol=1e-5)


def test_a_module_that_is_no_norm_is_refused():
    backbone = bert()

    with untouched(backbone), pytest.raises(TargetError, match="neither a LayerNorm or RMSNorm"):
        LayerNormModel(backbone, modified_modules=["query"])


def test_a_merged_copy_has_the_forward_of_its_class_after_trainers_put_theirs_on_the_backbone():
    backbone = bert()
    delta = LoraModel(backbone)
    stir(delta)
    expected = logits_of(merged_copy(backbone))
    backbone._original_forward = backbone.forward  # as accelerate wraps a model for mixed precision
    backbone.forward = MethodType(torch.autocast("cpu", torch.bfloat16)(backbone.forward.__func__), backbone)

    def fused(self, **inputs):
        raise AssertionError

    fused.__module__ = "trl.trainer.utils"
    backbone.classifier.forward = MethodType(fused, backbone.classifier)
    twin = merged_copy(backbone)
    assert torch.equal(logits_of(twin), expected)
    assert not any("forward" in module.__dict__ for module in twin.modules())
    assert "_original_forward" in backbone.__dict__


def test_a_backbone_of_which_a_copy_would_run_the_original_has_no_merged_copy():
    backbone = bert()
    LoraModel(backbone)
    head = backbone.classifier
    head.forward = lambda hidden: torch.nn.functional.linear(hidden, head.weight, head.bias)
    with pytest.raises(
        MergeError, match=r"forward of classifier was replaced by .*, which holds a module of the backbone"
    ):
        merged_copy(backbone)
    own = head.forward
    head.forward = lambda hidden: hidden + 1  # holds nothing
    assert torch.equal(logits_of(merged_copy(backbone)), logits_of(backbone))
    assert own is not head.forward


@pytest.mark.parametrize(
    "merge", [LoraModel.merge, lambda delta: merged_copy(delta.backbone_model)], ids=["merge", "copy"]
)
def test_a_backbone_that_zero_3_has_partitioned_is_not_merged_into(merge):
    backbone = bert()
    delta = LoraModel(backbone)
    backbone.classifier.weight.ds_id = 7
    with pytest.raises(MergeError, match=r"classifier\.weight is partitioned by DeepSpeed ZeRO-3"):
        merge(delta)
