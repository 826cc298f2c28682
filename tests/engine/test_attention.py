import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface
from transformers.models.bert.modeling_bert import BertSelfAttention, eager_attention_forward

from deltahub.engine.attention import AttentionCall, goes_through_interface, install
from deltahub.engine.insertion import Insertion
from deltahub.engine.site import CHILD, insert, site_of
from deltahub.errors import RouteError, TargetError
from tests.backbones import bert, t5

BATCH, HEADS, QUERIES, KEYS, WIDTH, PLACES = 2, 2, 3, 5, 4, 2
FORWARDS = {"eager": eager_attention_forward, "sdpa": sdpa_attention_forward}


class Attention(nn.Module):
    """The module that an attention function is told of."""

    is_causal = True


class TwoPlaces(Insertion):
    """Puts two places before all others."""

    def attend(self, target, call):
        return call.with_prefix(*PREFIX)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


QUERY = draw(BATCH, HEADS, QUERIES, WIDTH, seed=1)
KEY, VALUE = draw(BATCH, HEADS, KEYS, WIDTH, seed=2), draw(BATCH, HEADS, KEYS, WIDTH, seed=3)
PREFIX = draw(PLACES, HEADS * WIDTH, seed=4), draw(PLACES, HEADS * WIDTH, seed=5)


def call_of(mask=None, *, bias=None, causal=False, module=None, **changes):
    tensors = {"query": QUERY, "key": KEY, "value": VALUE, **changes}
    return AttentionCall(
        **tensors, module=module or Attention(), attention_mask=mask, position_bias=bias, causal=causal
    )


def function(implementation):
    install()
    return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)


def test_the_prefix_comes_before_the_keys_of_every_row_and_head():
    call = call_of().with_prefix(*PREFIX)

    assert call.key.shape == call.value.shape == (BATCH, HEADS, PLACES + KEYS, WIDTH)
    assert torch.equal(KEY, call.key[:, :, PLACES:])
    for row in range(BATCH):
        for head in range(HEADS):
            columns = slice(head * WIDTH, (head + 1) * WIDTH)
            assert torch.equal(PREFIX[0][:, columns], call.key[row, head, :PLACES])
            assert torch.equal(PREFIX[1][:, columns], call.value[row, head, :PLACES])


def test_a_prefix_of_another_width_is_refused():
    with pytest.raises(TargetError, match="A prefix of width 9 meets 2 heads of width 4 in a Attention"):
        call_of().with_prefix(torch.zeros(2, 9), torch.zeros(2, 8))


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.bfloat16])
def test_every_query_sees_the_prefix_whatever_its_mask_hides(kind):
    visible = draw(BATCH, 1, QUERIES, KEYS) > 0
    hidden = torch.finfo(kind).min if kind.is_floating_point else False
    mask = visible if kind == torch.bool else torch.zeros(visible.shape, dtype=kind).masked_fill(~visible, hidden)
    longer = call_of(mask).with_prefix(*PREFIX).attention_mask

    assert longer.dtype == kind
    assert torch.equal(mask, longer[..., PLACES:])
    assert torch.equal(longer[..., :PLACES], torch.full((BATCH, 1, QUERIES, PLACES), kind == torch.bool, dtype=kind))


def test_a_mask_that_says_one_thing_for_all_keys_is_written_out():
    longer = call_of(torch.tensor([False, True]).view(2, 1, 1, 1)).with_prefix(*PREFIX).attention_mask

    assert longer[0].flatten().tolist() == [True] * PLACES + [False] * KEYS
    assert longer[1].all()


def test_no_mask_stays_none_where_everything_is_visible():
    assert call_of().with_prefix(*PREFIX).attention_mask is None


@pytest.mark.parametrize("keys", [QUERIES, KEYS])
def test_masking_done_by_a_kernel_is_written_into_a_mask(keys):
    """With more keys than queries, as in a static cache that was just filled, sdpa starts the queries where the keys start."""
    module, key, value = Attention(), KEY[:, :, :keys], VALUE[:, :, :keys]
    insert(module, "prefix", TwoPlaces())
    output, _ = function("sdpa")(module, QUERY, key, value, None)

    scores = QUERY @ key.transpose(2, 3) / WIDTH**0.5
    scores = scores.masked_fill(~torch.ones(QUERIES, keys, dtype=torch.bool).tril(), -torch.inf)
    first = call_of().with_prefix(*PREFIX)
    scores = torch.cat([QUERY @ first.key[:, :, :PLACES].transpose(2, 3) / WIDTH**0.5, scores], -1)
    values = torch.cat([first.value[:, :, :PLACES], value], 2)
    assert torch.allclose((scores.softmax(-1) @ values).transpose(1, 2), output, atol=1e-6)


@pytest.mark.parametrize("told", [True, False])
def test_causality_of_a_call_overrides_that_of_its_module(told):
    module = Attention()
    module.is_causal = not told
    insert(module, "prefix", TwoPlaces())
    alone = Attention()
    alone.is_causal = told
    insert(alone, "prefix", TwoPlaces())
    outputs = [
        function("sdpa")(module, QUERY, KEY, VALUE, None, is_causal=told)[0],
        function("sdpa")(alone, QUERY, KEY, VALUE, None)[0],
        function("sdpa")(module, QUERY, KEY, VALUE, None)[0],
    ]

    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("implementation", "masked"),
    [("eager", "none"), ("eager", "float"), ("sdpa", "none"), ("sdpa", "float"), ("sdpa", "bool")],
)
def test_a_row_that_is_not_meant_attends_as_if_there_were_no_prefix(implementation, masked):
    mask = None if masked == "none" else torch.ones(BATCH, 1, QUERIES, KEYS, dtype=torch.bool)
    if mask is not None:
        mask[:, :, :, -1] = False
    if masked == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    module = Attention()
    module.is_causal = False
    plain, prefixed, mixed = (
        FORWARDS[implementation](module, QUERY, call.key, call.value, call.attention_mask)[0]
        for call in (
            call_of(mask),
            call_of(mask).with_prefix(*PREFIX),
            call_of(mask).for_rows(torch.tensor([True, False])).with_prefix(*PREFIX),
        )
    )

    assert torch.allclose(prefixed[0], mixed[0], atol=1e-6)
    assert torch.allclose(plain[1], mixed[1], atol=1e-6)
    assert not torch.allclose(plain[0], mixed[0], atol=1e-2)


def test_rows_of_another_batch_are_refused():
    with pytest.raises(RouteError, match="has 2 rows where the batch has 3"):
        call_of().for_rows(torch.tensor([True, False, True])).with_prefix(*PREFIX)


def relative(layer):
    return t5().decoder.block[layer].layer[0].SelfAttention


@pytest.mark.parametrize("seen", [0, 2])
@pytest.mark.parametrize("spare", [0, 4])
def test_a_relative_bias_counts_the_prefix_as_just_before_the_text(seen, spare):
    """Also where a static cache has `spare` places that are not filled yet."""
    attention, keys = relative(0), seen + QUERIES
    whole = attention.compute_bias(PLACES + keys, PLACES + keys)
    bias = attention.compute_bias(QUERIES, keys + spare, past_seen_tokens=seen)
    key = draw(BATCH, HEADS, keys + spare, WIDTH)
    mask = torch.ones(QUERIES, keys + spare, dtype=torch.bool).tril(seen).expand(BATCH, 1, -1, -1)
    masks = [mask, torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)]

    for one in [None, *masks] if not seen else masks:
        call = call_of(one, bias=bias, module=attention, key=key, value=key, causal=True).with_prefix(*PREFIX)
        assert torch.allclose(whole[:, :, PLACES + seen :], call.position_bias[..., : PLACES + keys])
        assert torch.equal(bias, call.position_bias[..., PLACES:])


def test_each_of_several_prefixes_is_just_before_the_text():
    attention = relative(0)
    bias = attention.compute_bias(QUERIES, KEYS, past_seen_tokens=KEYS - QUERIES)
    mask = torch.ones(1, 1, QUERIES, KEYS, dtype=torch.bool).tril(KEYS - QUERIES)
    once = call_of(mask, bias=bias, module=attention).with_prefix(*PREFIX)
    twice = once.with_prefix(*PREFIX)

    assert torch.equal(once.position_bias, twice.position_bias[..., PLACES:])
    assert torch.equal(once.position_bias[..., :PLACES], twice.position_bias[..., :PLACES])


def test_a_lent_relative_bias_is_dropped_in_the_rows_that_have_a_prefix():
    attention, bias = relative(1), draw(1, HEADS, QUERIES, KEYS)
    call = call_of(bias=bias, module=attention)

    assert not call.with_prefix(*PREFIX).position_bias.any()
    mixed = call.for_rows(torch.tensor([True, False])).with_prefix(*PREFIX).position_bias
    assert not mixed[0].any()
    assert torch.equal(bias[0], mixed[1, :, :, PLACES:])


def test_another_bias_leaves_the_prefix_alone():
    bias = draw(1, HEADS, QUERIES, KEYS)
    longer = call_of(bias=bias).with_prefix(*PREFIX).position_bias

    assert torch.equal(bias, longer[..., PLACES:])
    assert not longer[..., :PLACES].any()


@pytest.mark.parametrize("implementation", FORWARDS)
def test_an_attention_without_a_site_runs_as_it_did(implementation):
    module = Attention()
    expected = FORWARDS[implementation](module, QUERY, KEY, VALUE, None)[0]
    assert torch.equal(expected, function(implementation)(module, QUERY, KEY, VALUE, None)[0])

    insert(module, "other", Insertion())
    assert torch.equal(expected, function(implementation)(module, query=QUERY, key=KEY, value=VALUE)[0])


def test_other_arguments_of_an_attention_reach_it():
    module, given = Attention(), {}

    def kernel(module, query, key, value, attention_mask, **options):
        given.update(options)

    insert(module, "prefix", TwoPlaces())
    install()
    ALL_ATTENTION_FUNCTIONS.get_interface("eager", kernel)(module, QUERY, KEY, VALUE, None, scaling=3, softcap=4)
    assert given == {"scaling": 3, "softcap": 4}


def test_a_detour_replaces_every_attention_call():
    class Detour:
        def attend(self, target, call):
            return call.with_prefix(*(10 * part for part in PREFIX))

    module = Attention()
    module.is_causal = False
    insert(module, "prefix", TwoPlaces())
    site_of(module).detour = Detour()
    call = call_of().with_prefix(*(10 * part for part in PREFIX))

    expected = FORWARDS["sdpa"](module, QUERY, call.key, call.value, None)[0]
    assert torch.equal(expected, function("sdpa")(module, QUERY, KEY, VALUE, None)[0])


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention", "paged|eager"])
def test_a_kernel_whose_mask_cannot_be_extended_is_refused_only_where_something_would_extend_it(implementation):
    def kernel(module, query, key, value, attention_mask, **options):
        return "ran"

    install()
    own = ALL_ATTENTION_FUNCTIONS._local_mapping
    ALL_ATTENTION_FUNCTIONS[implementation] = kernel
    try:
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, kernel)
        module = Attention()
        assert attention(module, QUERY, KEY, VALUE, None) == "ran"
        insert(module, "prefix", TwoPlaces())
        with pytest.raises(TargetError, match=r"Attention computes attention with .* expected one of eager, sdpa"):
            attention(module, QUERY, KEY, VALUE, None)
    finally:
        del own[implementation]


def test_installing_again_changes_nothing():
    install()
    once = AttentionInterface.get_interface
    install()

    assert AttentionInterface.get_interface is once


def test_only_modules_whose_forward_asks_the_interface_go_through_it():
    found = {type(module) for _, module in bert().named_modules() if goes_through_interface(module)}

    assert found == {BertSelfAttention}
    assert CHILD not in bert().bert.encoder.layer[0].attention.self._modules
