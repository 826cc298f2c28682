"""What people are told about a saved delta."""

import pytest

from deltahub.checkpoint.backbone_record import QUANTISED_VERSION, Fingerprint, Leaf
from deltahub.checkpoint.description import fixed_values, method_title, module_addresses, quantisation_text
from deltahub.checkpoint.quantised_weight import Quantisation, QuantisedWeight

ADAPTER = {"delta_type": "adapter", "modified_modules": ["attn@.proj@", "ff@.w2@"]}
LOHA = {"delta_type": "weight_update", "method": "loha", "modified_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ({"delta_type": "lora"}, "lora"),
        ({"delta_type": "lora", "use_dora": True}, "lora (dora)"),
        (LOHA, "weight_update (loha)"),
        ({"delta_type": "reft"}, "reft"),
        ({"delta_type": "reft", "orthogonality": False}, "reft (noreft)"),
        ({"delta_type": "reft", "orthogonality": False, "subtract_projection": False}, "reft (direft)"),
        ({"delta_type": "union", "parts": [ADAPTER, LOHA]}, "union (adapter, weight_update (loha))"),
        ({"peft_type": "LOHA"}, "loha"),
    ],
)
def test_the_method_is_told_with_its_variant_or_its_parts(config, title):
    assert method_title(config) == title


def test_the_modules_of_a_delta_with_parts_are_those_of_its_parts():
    assert module_addresses(ADAPTER) == ["attn@.proj@", "ff@.w2@"]
    assert module_addresses({"delta_type": "fusion", "parts": [ADAPTER, LOHA], "modified_modules": []}) == [
        "adapter: attn@.proj@ ff@.w2@",
        "weight_update: q_proj",
    ]
    assert module_addresses({"delta_type": "lora", "modified_modules": None}) == []


def test_values_that_do_not_train_are_counted_by_the_names_of_their_tensors():
    sizes = {"a.deltas.vera_A": 6, "a.deltas.q.vera_lambda_b": 2, "deltas.vera_B": 3, "members.weight": 5}
    assert fixed_values({"delta_type": "vera"}, sizes) == 9
    assert fixed_values({"delta_type": "lora"}, sizes) == 0
    assert fixed_values({"delta_type": "vera", "delta_package": "acme"}, sizes) == 0


def test_the_quantisation_of_a_backbone_is_told_with_bits_and_the_number_of_weights():
    nf4 = Quantisation("nf4 (bitsandbytes)", 4, "bfloat16", "{}", ("weight",))
    unknown = Quantisation("codes", 0, "", "{}", ("qweight",))
    weights = (QuantisedWeight("a.weight", (2,), nf4), QuantisedWeight("b.weight", (2,), nf4))
    assert quantisation_text(Fingerprint((), QUANTISED_VERSION, weights)) == "nf4 (bitsandbytes), 4 bits, 2 weights"
    odd = Fingerprint((), QUANTISED_VERSION, (QuantisedWeight("a.weight", (), unknown),))
    assert quantisation_text(odd) == "codes, 1 weights"
    assert quantisation_text(Fingerprint((Leaf("a.SCB", "float32", (2,), "0" * 32),))) == "of an unknown kind"
    assert quantisation_text(Fingerprint((Leaf("a.weight", "float32", (2,), "0" * 32),))) == ""
