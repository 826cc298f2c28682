import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from deltahub import LoraModel, PrefixModel, deltas_of
from deltahub.engine.attention_layers import attentions, key_value_widths
from deltahub.errors import ConfigError, MergeError, TargetError
from deltahub.handle.routing import route
from tests.backbones import (
    _TEXT,
    _make,
    bert,
    equal,
    forward,
    gpt2,
    inputs_for,
    llama,
    logits_of,
    original,
    stir,
    t5,
    untouched,
    vit,
)

LAYERS = [f"bert.encoder.layer.{number}.attention.self" for number in (0, 1)]
PROMPT = torch.tensor([[5, 6, 7], [8, 9, 10]])


def grouped(implementation="sdpa", **changes):
    """Llama with two key heads for four query heads, or another model by its class."""
    sizes = {**_TEXT, "num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": implementation}
    return _make(changes.pop("kind", "LlamaForCausalLM"), **{**sizes, **changes})


def bart(implementation="sdpa"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return original("bart", init_std=0.3, attn_implementation=implementation)


def latent(implementation="sdpa"):
    """DeepSeek's attention: keys of 2 * 8, values of 2 * 6."""
    heads = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6, "q_lora_rank": 8, "kv_lora_rank": 8}
    return grouped(
        implementation, kind="DeepseekV3ForCausalLM", num_attention_heads=2, first_k_dense_replace=2, **heads
    )


def prefix(backbone, *, seed=2, **options):
    """Two places, stirred."""
    delta = PrefixModel(backbone, **{"prefix_token_num": 2, "reparameterize": False, **options})
    stir(delta, seed)
    return delta


def heads_of(states, heads=2):
    return states.unflatten(-1, (heads, -1)).transpose(-2, -3)


def test_prefix_keys_and_values_come_before_those_of_the_text():
    backbone = bert()
    delta = prefix(backbone, modified_modules=["layer.0.attention"])
    attention, x = backbone.get_submodule(LAYERS[0]), torch.randn(2, 5, 16)
    found, _ = attention(x)

    key, value = delta.insertions[LAYERS[0]].key_and_value(torch.float32)
    keys, values = (
        torch.cat([heads_of(part).expand(2, -1, -1, -1), heads_of(layer(x))], 2)
        for part, layer in ((key, attention.key), (value, attention.value))
    )
    expected = F.scaled_dot_product_attention(heads_of(attention.query(x)), keys, values)
    assert torch.allclose(expected.transpose(1, 2).flatten(2), found, atol=1e-6)


def test_the_network_makes_each_layer_its_own_rows():
    delta = prefix(bert(), reparameterize=True, embed_dim=3, mid_dim=4)
    own = {name.rpartition("reparams.")[2]: parameter for name, parameter in delta.named_parameters()}
    middle = torch.tanh(own["wte.weight"] @ own["control_trans.0.weight"].T + own["control_trans.0.bias"])
    whole = middle @ own["control_trans.2.weight"].T + own["control_trans.2.bias"]

    assert own["control_trans.2.weight"].shape == (2 * 2 * 16, 4)
    for layer, insertion in enumerate(delta.insertions.values()):
        for part, states in enumerate(insertion.key_and_value(torch.float32)):
            start = (2 * layer + part) * 16
            assert torch.allclose(whole[:, start : start + 16], states, atol=1e-6)


def test_the_network_is_saved_and_counted_once_and_shared_by_all_copies_of_the_layers():
    backbone = bert()
    prefix(backbone, reparameterize=True, embed_dim=3, mid_dim=4)
    twin = copy.deepcopy(backbone)
    delta = deltas_of(twin)["prefix"]
    twin.load_state_dict({name: torch.ones_like(tensor) for name, tensor in twin.state_dict().items()}, assign=True)

    assert {name.partition(".deltas.")[0] for name, _ in delta.named_parameters()} == {LAYERS[0]}
    networks = [delta.insertions[name].shared[0] for name in LAYERS]
    assert networks[0] is networks[1] is delta.insertions[LAYERS[0]].reparams
    assert (networks[1].wte.weight == 1).all()


def test_plain_prefixes_start_normal_and_the_network_as_its_layers_do():
    torch.manual_seed(0)
    plain = PrefixModel(bert(), 500, reparameterize=False)
    made = PrefixModel(bert(), 500, embed_dim=20, mid_dim=100)

    for parameter in plain.parameters():
        assert abs(parameter.mean()) < 0.05
        assert 0.95 < parameter.std() < 1.05
    own = {name.rpartition("reparams.")[2]: parameter for name, parameter in made.named_parameters()}
    assert 0.95 < own["wte.weight"].std() < 1.05
    assert 0.09 < own["control_trans.2.weight"].abs().max() <= 0.1  # 1 / sqrt(mid_dim)


@pytest.mark.parametrize("make", [grouped, latent, bart, gpt2, t5])
@pytest.mark.parametrize("reparameterize", [True, False])
def test_eager_and_sdpa_agree(make, reparameterize):
    logits = []
    for implementation in ("eager", "sdpa"):
        backbone = make()
        backbone.set_attn_implementation(implementation)
        prefix(backbone, reparameterize=reparameterize, embed_dim=3, mid_dim=4)
        logits.append(logits_of(backbone))

    assert torch.allclose(*logits, atol=1e-4)


def test_causal_attention_still_hides_later_tokens():
    backbone = llama()
    prefix(backbone)
    ids = inputs_for(backbone)["input_ids"]
    other = ids.clone()
    other[:, -1] += 1
    with torch.no_grad():
        logits, changed = backbone(input_ids=ids).logits, backbone(input_ids=other).logits

    assert torch.allclose(logits[:, :-1], changed[:, :-1], atol=1e-6)
    assert not torch.allclose(logits[:, -1], changed[:, -1], atol=1e-3)


@pytest.mark.parametrize("make", [bert, llama, t5])
def test_padding_stays_hidden(make):
    backbone = make()
    prefix(backbone)
    ids = inputs_for(backbone)
    short = ids["input_ids"]
    padded = F.pad(short, (0, 3))
    rest = {key: value for key, value in ids.items() if key != "input_ids"}
    with torch.no_grad():
        expected = backbone(input_ids=short, **rest).logits
        found = backbone(input_ids=padded, attention_mask=(padded > 0).long(), **rest).logits

    assert torch.allclose(expected, found[:, : expected.shape[1]], atol=1e-5)


def test_a_sliding_window_never_moves_past_the_prefix():
    backbone = grouped(kind="MistralForCausalLM", sliding_window=2)
    delta = prefix(backbone, modified_modules=["layers.0.self_attn"])
    forward(backbone)[:, -1].sum().backward()

    assert all(parameter.grad.abs().max() > 0 for parameter in delta.parameters())


def written(backbone, **options):
    with torch.no_grad():
        result = backbone.generate(
            input_ids=PROMPT,
            attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]),
            do_sample=False,
            min_new_tokens=3,
            max_new_tokens=3,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    return torch.stack(result.logits, 1)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("make", "address"),
    [
        (grouped, "self_attn"),
        (gpt2, "attn"),
        (t5, "SelfAttention"),
        (t5, "EncDecAttention"),
        (bart, "self_attn"),
        (bart, "encoder_attn"),
    ],
)
def test_no_cache_ever_holds_the_prefix(make, address, implementation):
    backbone = make()
    backbone.set_attn_implementation(implementation)
    backbone.config.decoder_start_token_id = backbone.generation_config.decoder_start_token_id = 0
    bare = written(backbone)
    prefix(backbone, modified_modules=[address])
    expected = written(backbone, use_cache=False)

    assert not torch.allclose(bare, expected, atol=1e-2)
    assert torch.allclose(expected, written(backbone), atol=1e-5)
    assert torch.allclose(expected, written(backbone, cache_implementation="static"), atol=1e-5)


@pytest.mark.parametrize("make", [bert, gpt2, llama, t5, vit])
@pytest.mark.parametrize("reparameterize", [True, False])
def test_some_layers_can_have_a_prefix_and_others_none(make, reparameterize):
    backbone = make()
    names = list(attentions(backbone))
    both = [
        prefix(backbone, modified_modules=[name], reparameterize=reparameterize, embed_dim=3, mid_dim=4)
        for name in names[:2]
    ]
    logits = logits_of(backbone)
    both[0].detach()
    one = logits_of(backbone)
    both[1].detach()

    assert [list(delta.insertions) for delta in both] == [[names[0]], [names[1]]]
    assert not torch.allclose(logits, one)
    assert not torch.allclose(one, logits_of(backbone))


def test_an_address_means_the_attentions_inside_a_module():
    delta = PrefixModel(bart(), 2, modified_modules=["decoder.layers.0"])

    assert list(delta.insertions) == [f"model.decoder.layers.0.{name}" for name in ("self_attn", "encoder_attn")]
    assert list(PrefixModel(bert(), 2, exclude_modules=["layer.0"]).insertions) == LAYERS[1:]


def test_a_module_without_an_attention_is_refused_with_those_that_have_one():
    backbone = bert()

    with (
        untouched(backbone),
        pytest.raises(TargetError, match=rf"output \(BertOutput\) is not an attention .*: {', '.join(LAYERS)}"),
    ):
        PrefixModel(backbone, modified_modules=["layer.0.output"])


@pytest.mark.parametrize(
    ("kind", "options"), [("DebertaV2Model", _TEXT), ("GPT2Model", {"n_layer": 1, "reorder_and_upcast_attn": True})]
)
def test_a_model_that_does_not_use_the_interface_is_refused_with_some_that_do(kind, options):
    backbone = _make(kind, **options)
    why = rf"No attention of this {kind} goes through .* Those of bart, bert, .* and \d+ more model types do"

    with untouched(backbone), pytest.raises(TargetError, match=why):
        PrefixModel(backbone)


def test_another_kernel_is_refused_at_once_and_when_it_is_chosen_later(monkeypatch):
    backbone, later = bert(), bert()
    backbone.config._attn_implementation = "flash_attention_2"
    with untouched(backbone), pytest.raises(TargetError, match="expected one of eager, sdpa"):
        PrefixModel(backbone)

    delta = PrefixModel(later)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "mine", eager_attention_forward)
    later.config._attn_implementation = "mine"
    with pytest.raises(TargetError, match=r'with \'mine\', .* Call backbone.set_attn_implementation\("sdpa"\)'):
        logits_of(later)
    delta.detach()
    assert torch.allclose(logits_of(bert()), logits_of(later), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "widths"),
    [
        (bert, {(16, 16)}),
        (grouped, {(8, 8)}),
        (latent, {(16, 12)}),
        (gpt2, {(16, 16)}),
        (t5, {(16, 16)}),
        (bart, {(32, 32)}),
        (vit, {(16, 16)}),
    ],
)
def test_the_widths_that_modules_tell_are_those_of_a_forward_pass(make, widths, monkeypatch):
    backbone = make()
    told = key_value_widths(backbone, attentions(backbone))
    monkeypatch.setattr("deltahub.engine.attention_layers._declared_widths", lambda module: None)

    assert set(told.values()) == widths
    assert told == key_value_widths(backbone, attentions(backbone))


def test_an_attention_that_no_forward_pass_reaches_is_refused_with_the_reason(monkeypatch):
    backbone = bert()
    monkeypatch.setattr("deltahub.engine.attention_layers._declared_widths", lambda module: None)

    def fail(*args, **kwargs):
        message = "no such luck"
        raise RuntimeError(message)

    monkeypatch.setattr(type(backbone), "forward", fail)
    with untouched(backbone), pytest.raises(TargetError, match=r"layer.0.attention.self .* failed: no such luck"):
        PrefixModel(backbone)


@pytest.mark.slow
@pytest.mark.slow
def test_it_acts_in_a_fresh_process(tmp_path):
    backbones = [bert(), bert()]
    for backbone, reparameterize in zip(backbones, (True, False), strict=True):
        prefix(backbone, reparameterize=reparameterize, embed_dim=3, mid_dim=4)
    ids, logits = inputs_for(bert())["input_ids"], [logits_of(backbone) for backbone in backbones]
    (tmp_path / "models.pickle").write_bytes(pickle.dumps((backbones, ids)))
    script = (
        "import pickle, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "folder = sys.argv[1]\n"
        "models, ids = pickle.load(open(f'{folder}/models.pickle', 'rb'))\n"
        "torch.save([model(input_ids=ids).logits.detach() for model in models], f'{folder}/logits.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)

    for expected, found in zip(logits, torch.load(tmp_path / "logits.pt"), strict=True):
        assert torch.equal(expected, found)
        assert not torch.allclose(expected, logits_of(bert()))


def test_checkpointed_blocks_give_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        backbone = llama()
        delta = prefix(backbone, reparameterize=True, embed_dim=3, mid_dim=4)
        delta.freeze_module()
        if checkpointing:
            backbone.activation_checkpointing_enable()
        backbone.train()
        forward(backbone).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in delta.named_parameters()})

    assert equal(*gradients)


def test_it_works_beside_another_delta_and_comes_off_in_any_order():
    backbone = t5()
    bare = logits_of(backbone)
    lora = LoraModel(backbone, lora_r=2)
    stir(lora)
    with_lora = logits_of(backbone)
    delta = prefix(backbone)
    both = logits_of(backbone)
    lora.detach()

    assert not torch.allclose(both, logits_of(backbone))
    delta.detach()
    assert torch.equal(bare, logits_of(backbone))
    lora.attach()
    assert torch.equal(with_lora, logits_of(backbone))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [bert, gpt2, grouped, t5, vit])
def test_each_row_of_a_batch_can_have_a_prefix_of_its_own(make, implementation):
    backbone = make()
    backbone.set_attn_implementation(implementation)
    alone = {None: logits_of(backbone)}
    for name, seed, places in (("one", 1, 2), ("other", 2, 3)):
        delta = prefix(backbone, seed=seed, name=name, prefix_token_num=places)
        alone[name] = logits_of(backbone)
        delta.detach()
    for delta in deltas_of(backbone).values():
        delta.attach()

    for rows in (["one", "other"], [None, "one"], ["other", None]):
        with route(backbone, rows):
            found = logits_of(backbone)
        for row, name in enumerate(rows):
            assert torch.allclose(alone[name][row], found[row], atol=1e-5)


def test_it_cannot_be_merged():
    delta = prefix(bert())

    with pytest.raises(MergeError, match="cannot be written into a layer's weights"):
        delta.merge()


def test_the_arguments_have_the_order_of_opendelta():
    delta = PrefixModel(bert(), 4, False, 5, 6, ["attention"], ["layer.1"], ["deltas", "classifier"], False)
    config = delta.config

    assert (config.prefix_token_num, config.reparameterize, config.embed_dim, config.mid_dim) == (4, False, 5, 6)
    assert config.unfrozen_modules == ("deltas", "classifier")
    assert list(delta.insertions) == LAYERS[:1]


def test_a_network_that_is_sharded_apart_is_refused():
    delta = prefix(bert(), reparameterize=True, embed_dim=3, mid_dim=4)
    network = delta.insertions[LAYERS[0]].reparams
    network.control_trans[2].weight.full_tensor = None  # what tells a DTensor

    with pytest.raises(ConfigError, match=r"Shard the backbone as a whole, or .* reparameterize=False"):
        delta.insertions[LAYERS[1]].key_and_value(torch.float32)


def test_keys_alone_are_counted_on_only_where_positions_are_relative():
    with pytest.raises(ConfigError, match="shift_keys is for attentions with a relative bias"):
        PrefixModel(bert(), 2, reparameterize=False, shift_keys=True)
    with pytest.raises(ConfigError, match="Leave out one of the two"):
        PrefixModel(t5(), 2, shift_positions=True, shift_keys=True)


@pytest.mark.parametrize("reparameterize", [True, False])
def test_each_row_may_have_its_keys_counted_on_from_a_prefix_of_its_own(reparameterize):
    backbone = t5()
    expected = []
    for name in ("first", "second"):
        delta = PrefixModel(backbone, 2, reparameterize, 4, 5, ["attn@"], shift_keys=True, name=name)
        stir(delta, len(expected))
        expected.append(logits_of(backbone)[len(expected)])
        delta.detach()
    for delta in deltas_of(backbone).values():
        delta.attach()
    with route(backbone, ["first", "second"]):
        assert torch.allclose(torch.stack(expected), logits_of(backbone), atol=1e-5)

    with pytest.raises(TargetError, match="must be the only one in its attention"):
        logits_of(backbone)
