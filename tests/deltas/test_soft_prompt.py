import inspect

import pytest
import torch
from torch import nn
from transformers import StaticCache

from deltahub import AutoDeltaModel, SoftPromptModel
from deltahub.errors import ConfigError, MergeError, TargetError
from tests.backbones import (
    _TEXT,
    _make,
    bert,
    gpt2,
    inputs_for,
    llama,
    logits_of,
    original,
    stir,
    t5,
    tensors_of,
    untouched,
    vit,
)

N, TOKENS = 3, 7
PROMPT = torch.tensor([[5, 6, 7], [8, 9, 10]])


def bart():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return original("bart", init_std=0.3)


def opt():
    sizes = {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 12}
    return _make("OPTForCausalLM", **_TEXT, **sizes)


def soft_prompt(backbone, *, seed=2, **options):
    """Three soft tokens, stirred."""
    delta = SoftPromptModel(backbone, **{"soft_token_num": N, **options})
    stir(delta, seed)
    return delta


def ids_of(backbone):
    return inputs_for(backbone)["input_ids"]


def by_hand(backbone, delta, **more):
    """What the bare backbone gives for soft tokens and text as one sequence of embeddings."""
    delta.detach()
    with torch.no_grad():
        embeds = backbone.get_input_embeddings()(ids_of(backbone))
        (soft,) = delta.parameters()
        logits = backbone(inputs_embeds=torch.cat([soft.expand(2, -1, -1), embeds], 1), **more).logits
    delta.attach()
    return logits


@pytest.mark.parametrize("make", [bert, gpt2, llama, opt])
def test_soft_tokens_come_before_the_text(make):
    backbone = make()
    delta = soft_prompt(backbone)
    found = logits_of(backbone)

    assert torch.allclose(by_hand(backbone, delta), found, atol=1e-6)
    assert [name for name, _ in delta.named_parameters()] == ["deltas.soft_embeds"]


def test_a_decoder_returns_a_position_for_each_soft_token_in_front():
    backbone = gpt2()
    soft_prompt(backbone)

    assert logits_of(backbone).shape == (2, N + TOKENS, 50)


@pytest.mark.parametrize("make", [t5, bart])
def test_the_decoder_of_an_encoder_decoder_sees_the_soft_tokens(make):
    backbone = make()
    delta = soft_prompt(backbone)
    inputs = inputs_for(backbone)
    mask = torch.tensor([[1] * TOKENS, [1] * 4 + [0] * 3])
    with torch.no_grad():
        found = backbone(attention_mask=mask, **inputs).logits
    longer = torch.cat([torch.ones(2, N, dtype=torch.long), mask], 1)

    expected = by_hand(backbone, delta, attention_mask=longer, decoder_input_ids=inputs["decoder_input_ids"])
    assert torch.allclose(expected, found, atol=1e-5)
    (home,) = (name for name, _ in delta.named_parameters())
    assert home.endswith("encoder.deltas.soft_embeds")


def test_masks_segments_and_positions_grow_and_those_of_the_caller_stay():
    backbone = bert()
    delta = soft_prompt(backbone)
    given = {
        "attention_mask": torch.tensor([[1] * TOKENS, [1] * 5 + [0] * 2]),
        "token_type_ids": torch.tensor([[0] * 3 + [1] * 4] * 2),
        "position_ids": torch.arange(TOKENS).flip(0).expand(2, -1),
    }
    before = {key: tensor.clone() for key, tensor in given.items()}
    with torch.no_grad():
        found = backbone(input_ids=ids_of(backbone), **given).logits
    grown = {
        "attention_mask": torch.cat([torch.ones(2, N, dtype=torch.long), given["attention_mask"]], 1),
        "token_type_ids": torch.cat([torch.zeros(2, N, dtype=torch.long), given["token_type_ids"]], 1),
        "position_ids": torch.cat([torch.arange(N).expand(2, -1), given["position_ids"] + N], 1),
    }

    assert torch.allclose(by_hand(backbone, delta, **grown), found, atol=1e-6)
    assert all(torch.equal(before[key], given[key]) for key in given)


def test_arguments_can_be_positional_and_embeddings_replace_a_text():
    backbone = bert()
    soft_prompt(backbone)
    ids, mask = ids_of(backbone), torch.tensor([[1] * TOKENS, [1] * 5 + [0] * 2])
    embeds = backbone.get_input_embeddings()(ids)
    with torch.no_grad():
        expected = backbone(input_ids=ids, attention_mask=mask).logits

        assert torch.equal(expected, backbone(ids, mask).logits)
        assert torch.equal(expected, backbone(inputs_embeds=embeds, attention_mask=mask).logits)


def test_labels_grow_with_the_text_and_soft_tokens_count_for_nothing():
    backbone = gpt2()
    soft_prompt(backbone)
    ids = ids_of(backbone)
    output = backbone(input_ids=ids, labels=ids)
    expected = nn.functional.cross_entropy(output.logits[:, N:-1].flatten(0, 1), ids[:, 1:].flatten())
    first = nn.functional.cross_entropy(output.logits[:, N - 1], ids[:, 0])

    assert torch.allclose(output.loss, (expected * 2 * (TOKENS - 1) + first * 2) / (2 * TOKENS))


def test_labels_of_whole_texts_and_of_decoders_stay_as_they_are():
    classifier, translator = bert(), t5(decoder_start_token_id=0)
    for backbone in (classifier, translator):
        soft_prompt(backbone)

    assert classifier(**inputs_for(classifier), labels=torch.tensor([0, 2])).loss.isfinite()
    assert translator(input_ids=ids_of(translator), labels=ids_of(translator)).logits.shape == (2, TOKENS, 50)


def test_labels_that_are_positions_move_with_the_text():
    backbone = _make("BertForQuestionAnswering", **_TEXT, max_position_embeddings=12)
    soft_prompt(backbone)
    start, end = torch.tensor([1, 2]), torch.tensor([3, 6])
    output = backbone(input_ids=ids_of(backbone), start_positions=start, end_positions=end)
    losses = (
        nn.functional.cross_entropy(logits, places + N)
        for logits, places in ((output.start_logits, start), (output.end_logits, end))
    )

    assert torch.allclose(output.loss, sum(losses) / 2)


def test_other_per_token_arguments_can_be_named():
    backbone = bert()
    ones = torch.ones(2, TOKENS, dtype=torch.long)
    delta = soft_prompt(backbone, other_expand_ids={"token_type_ids": 1, "attention_mask": 0})
    with torch.no_grad():
        found = backbone(input_ids=ids_of(backbone), token_type_ids=ones, attention_mask=ones).logits
    mask = torch.cat([torch.zeros(2, N, dtype=torch.long), ones], 1)
    segments = torch.ones(2, N + TOKENS, dtype=torch.long)

    assert torch.allclose(by_hand(backbone, delta, token_type_ids=segments, attention_mask=mask), found, atol=1e-6)


def written(backbone, **options):
    with torch.no_grad():
        result = backbone.generate(
            input_ids=PROMPT,
            attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]),
            do_sample=False,
            min_new_tokens=4,
            max_new_tokens=4,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    return torch.stack(result.logits, 1), result.sequences


@pytest.mark.parametrize("make", [gpt2, llama, opt, t5, bart])
def test_a_cache_changes_nothing_with_padding_on_the_left(make):
    backbone = make()
    backbone.generation_config.decoder_start_token_id = 0
    bare, _ = written(backbone)
    soft_prompt(backbone)
    expected, words = written(backbone, use_cache=False)
    found, same_words = written(backbone)

    assert not torch.allclose(bare, expected, atol=1e-2)
    assert torch.allclose(expected, found, atol=1e-5)
    assert torch.equal(words, same_words)
    assert backbone.config.is_encoder_decoder or torch.equal(PROMPT, words[:, :3])


@pytest.mark.parametrize("make", [gpt2, llama])
def test_beams_share_cached_keys_and_values(make):
    backbone = make()
    soft_prompt(backbone)
    with torch.no_grad():
        cached, whole = (
            backbone.generate(
                PROMPT,
                attention_mask=torch.ones_like(PROMPT),
                num_beams=3,
                max_new_tokens=4,
                do_sample=False,
                use_cache=use_cache,
                pad_token_id=0,
            )
            for use_cache in (True, False)
        )

    assert torch.equal(cached, whole)


def test_a_cache_that_cannot_grow_is_refused():
    backbone = gpt2()
    soft_prompt(backbone)

    with pytest.raises(ConfigError, match="a StaticCache does not grow"):
        backbone(PROMPT, past_key_values=StaticCache(backbone.config, max_cache_len=12))
    with pytest.raises(ConfigError, match="a StaticCache does not grow"):
        written(backbone, cache_implementation="static")


def test_a_state_that_counts_no_tokens_is_refused():
    backbone = _make("MambaForCausalLM", vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    delta = soft_prompt(backbone)
    found = logits_of(backbone)

    assert torch.allclose(by_hand(backbone, delta), found, atol=1e-6)
    with pytest.raises(ConfigError, match=r"Call generate\(use_cache=False\)"):
        written(backbone)
    assert written(backbone, use_cache=False)[0].shape == (2, 4, 50)


@pytest.mark.parametrize(
    ("shape", "found"), [((2, 1, TOKENS, TOKENS), r"\[2, 1, 7, 7\]"), ((2, TOKENS + 1), r"\[2, 8\]"), (None, "a dict")]
)
def test_another_mask_is_refused(shape, found):
    backbone = gpt2()
    soft_prompt(backbone)
    mask = {} if shape is None else torch.ones(shape)

    with pytest.raises(ConfigError, match=rf"an entry for each token, \(batch, 7\), got {found}"):
        backbone(ids_of(backbone), attention_mask=mask)


@pytest.mark.parametrize("more", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_a_cache_of_an_earlier_generate_is_refused(more, padded):
    """It holds soft tokens, which generate() takes for tokens of the text that it need not give again."""
    backbone = gpt2()
    soft_prompt(backbone)
    mask = torch.ones(2, 3 + more, dtype=torch.long)
    mask[0, 0] = 1 - padded
    earlier = backbone(PROMPT, attention_mask=mask[:, :3], use_cache=True).past_key_values
    longer = torch.cat([PROMPT, PROMPT, PROMPT], 1)[:, : 3 + more]

    with pytest.raises(ConfigError, match="A cache that an earlier generate"):
        backbone.generate(longer, attention_mask=mask, past_key_values=earlier, max_new_tokens=1, pad_token_id=0)


def test_a_text_can_be_given_in_parts_by_hand():
    backbone = gpt2()
    soft_prompt(backbone)
    ids = ids_of(backbone)
    expected = logits_of(backbone)
    with torch.no_grad():
        first = backbone(ids[:, :3], use_cache=True)
        second = backbone(ids[:, 3:], past_key_values=first.past_key_values)

    assert torch.allclose(expected, torch.cat([first.logits, second.logits], 1), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (bert, 12),
        (gpt2, 12),
        (opt, 12),
        (lambda: _make("RobertaForMaskedLM", **_TEXT, max_position_embeddings=14, pad_token_id=1), 12),
        (lambda: bart().model.encoder, 40),
    ],
    ids=["bert", "gpt2", "opt", "roberta", "bart"],
)
def test_a_text_that_leaves_no_room_among_learned_positions_is_refused(make, limit):
    backbone = make()
    SoftPromptModel(backbone, N)
    ids = torch.full((1, limit - N), 5)

    backbone(ids)
    why = (
        f"3 soft tokens and a text of {limit - N + 1} make {limit + 1}, and this model has learned {limit} positions. "
    )
    with pytest.raises(ConfigError, match=f"{why}Cut the text to {limit - N} tokens"):
        backbone(torch.full((1, limit - N + 1), 5))
    with untouched(backbone), pytest.raises(ConfigError, match=f"this model has learned {limit} positions"):
        SoftPromptModel(backbone, limit, token_init=False)


def test_positions_that_are_computed_have_no_end():
    backbone = llama()
    assert backbone.config.max_position_embeddings == 12
    soft_prompt(backbone)

    assert backbone(torch.full((1, 20), 5)).logits.shape == (1, 20 + N, 50)


def test_they_start_as_the_first_words_or_within_the_range():
    backbone = bert()
    (words,) = SoftPromptModel(backbone, N).parameters()
    torch.manual_seed(0)
    (drawn,) = SoftPromptModel(llama(), 60, init_range=0.2, token_init=False).parameters()

    weight = backbone.get_input_embeddings().weight
    assert torch.equal(weight[:N], words)
    assert words.data_ptr() != weight.data_ptr()
    assert 0.19 < drawn.abs().max() <= 0.2
    assert abs(drawn.mean()) < 0.02


def test_a_model_that_takes_no_text_is_refused():
    for backbone in (vit(), nn.Linear(2, 2)):
        with untouched(backbone), pytest.raises(TargetError, match="a forward that takes inputs_embeds"):
            SoftPromptModel(backbone, N)


def test_there_are_no_modules_to_choose():
    backbone = bert()

    with untouched(backbone), pytest.raises(ConfigError, match="so interactive_modify=True would do nothing"):
        SoftPromptModel(backbone, N, interactive_modify=True)


def test_the_backbone_still_says_what_it_takes():
    backbone = bert()
    expected = inspect.signature(backbone.forward)
    soft_prompt(backbone)

    assert inspect.signature(backbone.forward) == expected
    assert "input_ids" in expected.parameters


def test_of_two_soft_prompts_one_is_before_the_other():
    backbone = gpt2()
    first, second = soft_prompt(backbone, seed=1), soft_prompt(backbone, seed=2, soft_token_num=2)
    both = logits_of(backbone)
    first.detach()
    second.detach()
    with torch.no_grad():
        soft = [*second.parameters(), *first.parameters()]  # the first is innermost: it comes last, and stands in front
        embeds = [part.expand(2, -1, -1) for part in reversed(soft)]
        embeds.append(backbone.get_input_embeddings()(ids_of(backbone)))
        assert torch.allclose(backbone(inputs_embeds=torch.cat(embeds, 1)).logits, both, atol=1e-6)


@pytest.mark.parametrize("make", [bert, t5])
def test_a_head_can_be_trained_with_it_and_is_saved_with_it(make, tmp_path):
    backbone, fresh = make(), make()
    before = tensors_of(backbone)
    delta = soft_prompt(backbone)
    delta.freeze_module(exclude=["deltas", "classifier" if make is bert else "lm_head"])
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    delta.save_finetuned(tmp_path)
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)

    assert torch.equal(logits_of(backbone), logits_of(fresh))
    delta.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_it_cannot_be_merged():
    with pytest.raises(MergeError, match="cannot be merged into the backbone"):
        soft_prompt(bert()).merge()


def test_the_arguments_have_the_order_of_opendelta():
    delta = SoftPromptModel(bert(), 4, 0.1, False, {"token_type_ids": 1}, None, None, ["deltas", "classifier"], False)
    config = delta.config

    assert (config.soft_token_num, config.init_range, config.token_init) == (4, 0.1, False)
    assert config.other_expand_ids == {"token_type_ids": 1}
    assert config.unfrozen_modules == ("deltas", "classifier")


def test_a_model_that_has_no_answer_for_its_embeddings_is_refused():
    class Encoder(nn.Module):
        """Takes embeddings, and cannot say which are its own."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def get_input_embeddings(self):
            raise NotImplementedError

        def forward(self, input_ids=None, inputs_embeds=None):
            return self.layer(inputs_embeds)

    backbone = Encoder()

    with untouched(backbone), pytest.raises(TargetError, match="Encoder does not support soft prompts"):
        SoftPromptModel(backbone)


def test_in_a_module_that_only_holds_models_each_gets_soft_tokens(tmp_path):
    def holder():
        return nn.ModuleDict({"inner": nn.ModuleDict({"decoder": gpt2()}), "both": t5()})

    backbone = holder()
    delta = soft_prompt(backbone)

    assert set(delta.insertions) == {"inner.decoder", "both", "both.encoder"}
    for model, alone, place in (
        (backbone["inner"]["decoder"], gpt2(), "inner.decoder.deltas.soft_embeds"),
        (backbone["both"], t5(), "both.encoder.deltas.soft_embeds"),
    ):
        (soft,) = SoftPromptModel(alone, soft_token_num=N).parameters()
        soft.data.copy_(dict(delta.named_parameters())[place])
        assert torch.equal(logits_of(model), logits_of(alone))
    delta.save_finetuned(tmp_path)
    other = holder()
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=other)
    assert torch.equal(logits_of(other["both"]), logits_of(backbone["both"]))
