"""Token rows: some rows of an embedding train, and with them the same rows of every module that shares its weight."""

import copy

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration

from deltahub import AutoDeltaModel, TokenRowsModel, UnionModel, merged_copy
from deltahub.errors import ConfigError, FingerprintMismatch, TargetError
from tests.backbones import bert, bert_mlm, gpt2, inputs_for, llama, logits_of, stir, t5, train, untouched

TOKENS = [34, 15, 22, 3]  # three of them are in the inputs, 3 is only in the logits


def bart():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "scale_embedding": True}
    return BartForConditionalGeneration(BartConfig(vocab_size=50, max_position_embeddings=12, **sizes, **heads)).eval()


def edited(backbone, rows):
    """A copy of a backbone with rows added to its input embeddings' weight, wherever that is shared."""
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        twin.get_input_embeddings().weight[sorted(TOKENS)] += rows
    return twin


@pytest.mark.parametrize("build", [gpt2, t5, llama, bert_mlm, bart])
def test_it_gives_the_outputs_of_an_edited_table_and_merges_into_it(build, tmp_path):
    backbone = build()
    plain = copy.deepcopy(backbone)
    delta = TokenRowsModel(backbone, TOKENS)
    delta.freeze_module()
    stir(delta)
    (rows,) = delta.state_dict().values()
    assert rows.shape == (4, 16)
    expected = logits_of(edited(plain, rows))
    assert not torch.allclose(expected, logits_of(plain), atol=1e-2)
    torch.testing.assert_close(logits_of(backbone), expected, rtol=1e-4, atol=1e-4)

    delta.save_finetuned(tmp_path / "delta")
    acting, again = logits_of(backbone), copy.deepcopy(plain)
    AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=again)
    assert torch.equal(logits_of(again), acting)

    copied = merged_copy(backbone)
    torch.testing.assert_close(logits_of(copied), expected, rtol=1e-4, atol=1e-4)
    assert [name for name, _ in copied.named_parameters()] == [name for name, _ in plain.named_parameters()]  # tied
    delta.merge()
    torch.testing.assert_close(logits_of(backbone), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(backbone.get_input_embeddings().weight, edited(plain, rows).get_input_embeddings().weight)
    delta.unmerge()
    assert torch.equal(logits_of(backbone), acting)
    delta.remove()
    assert torch.equal(logits_of(backbone), logits_of(plain))


def test_its_gradient_is_that_of_the_rows_of_a_tied_table():
    backbone = gpt2()
    delta = TokenRowsModel(backbone, TOKENS)
    delta.freeze_module()
    logits = backbone(**inputs_for(backbone)).logits
    logits.square().sum().backward()
    (rows,) = delta.parameters()

    whole = gpt2()
    whole(**inputs_for(whole)).logits.square().sum().backward()
    torch.testing.assert_close(rows.grad, whole.transformer.wte.weight.grad[sorted(TOKENS)], rtol=1e-4, atol=1e-3)


def test_the_row_of_the_padding_trains_only_where_it_trains_in_the_table():
    backbone, whole = bert(pad_token_id=15), bert(pad_token_id=15)
    delta = TokenRowsModel(backbone, TOKENS)
    delta.freeze_module()
    ids = inputs_for(backbone)["input_ids"]
    for model in (backbone, whole):
        model(input_ids=ids).logits.square().sum().backward()
    (rows,) = delta.parameters()
    torch.testing.assert_close(
        rows.grad, whole.bert.embeddings.word_embeddings.weight.grad[sorted(TOKENS)], rtol=1e-4, atol=1e-5
    )
    assert rows.grad[1].abs().max() == 0


def test_in_half_precision_it_trains_in_float32_and_leaves_other_tokens_bit_for_bit():
    backbone = llama().bfloat16()
    table = backbone.get_input_embeddings()
    ids = torch.arange(50)
    before = table(ids)
    delta = TokenRowsModel(backbone, TOKENS)
    delta.freeze_module()
    train(backbone, 2)
    others = [token for token in range(50) if token not in TOKENS]
    assert {parameter.dtype for parameter in delta.parameters()} == {torch.float32}
    assert torch.equal(table(ids)[others], before[others])
    assert not torch.equal(table(ids), before)


def test_new_tokens_of_a_resized_backbone_load_where_the_new_rows_are_the_same(tmp_path):
    def resized():
        backbone = gpt2()
        backbone.resize_token_embeddings(52, mean_resizing=False)
        with torch.no_grad():
            backbone.get_input_embeddings().weight[50:] = 0
        return backbone

    backbone = resized()
    delta = TokenRowsModel(backbone, [50, 51])
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path / "delta")
    again = resized()
    AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=again)
    assert torch.equal(logits_of(again), logits_of(backbone))

    other = gpt2()
    with pytest.raises(FingerprintMismatch), untouched(other):
        AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=other)


def test_it_joins_a_lora_in_a_union(tmp_path):
    backbone = gpt2()
    parts = [{"delta_type": "lora", "lora_r": 2}, {"delta_type": "token_rows", "token_indices": TOKENS}]
    union = UnionModel(backbone, parts)
    stir(union)
    union.save_finetuned(tmp_path / "delta")
    again = gpt2()
    AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=again)
    assert torch.equal(logits_of(again), logits_of(backbone))


class OwnHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(50, 16)
        self.layer = nn.Linear(16, 16)

    def forward(self, ids):
        return nn.functional.linear(self.layer(self.wte(ids)), self.wte.weight)


@pytest.mark.parametrize(
    ("build", "options", "error", "message"),
    [
        (gpt2, {"token_indices": []}, ConfigError, "token_indices must be .* got none"),
        (gpt2, {"token_indices": [3, 3]}, ConfigError, "each once; got .3, 3."),
        (gpt2, {"token_indices": [-1]}, ConfigError, "token_indices.* -1"),
        (gpt2, {"token_indices": [50]}, ConfigError, "has 50, .* rows 0 to 49. .*resize_token_embeddings"),
        (gpt2, {"token_indices": [3], "modified_modules": ["attn.c_attn"]}, TargetError, "Address an embedding"),
        (gpt2, {"token_indices": [3], "exclude_modules": ["lm_head"]}, TargetError, "lm_head, .*trained as one"),
        (OwnHead, {"token_indices": [3]}, TargetError, "Address them"),
        (OwnHead, {"token_indices": [3], "modified_modules": ["wte"]}, TargetError, "multiplies by its weight"),
    ],
)
def test_it_refuses_rows_that_it_could_not_train_alone(build, options, error, message):
    backbone = build()
    with pytest.raises(error, match=message), untouched(backbone):
        TokenRowsModel(backbone, **options)
