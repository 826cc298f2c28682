import copy
import json

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from deltahub import LoraModel
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.engine.fingerprint import backbone_tensors, fingerprint
from deltahub.engine.overrides import overrides_for
from deltahub.errors import CheckpointError, DeltaHubError, FingerprintMismatch
from tests.backbones import bert, bert_mlm, gpt2, original, stir, untouched

LEAVES = ["8574b1eb820552229b6204a3f4c0dfc5", "2d0408b485dd77b108c27fcd95d1fea5"]
COUNT = "2c0a8a99dc147d5445c3b49d035665b2"
HASHES = {1: "cd9d961c52f5bc773fb9fab31610912f", 2: "096ad9df8cb60abcdfca0708b6109e3d"}


def level(expected, found):
    """How a backbone differs from the expected one, in words."""
    return fingerprint(expected).compare(fingerprint(found)).level


def change(model, name, to=None):
    """A copy of a model in which one tensor is another."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        parameter = twin.get_parameter(name)
        parameter.view(-1)[0] += 1e-3 if to is None else to
    return twin


class Tiny(nn.Module):
    """The smallest model with a parameter and buffers of every kind."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).view(2, 3))
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))
        self.register_buffer("cache", torch.ones(2), persistent=False)


@pytest.mark.parametrize("version", HASHES)
def test_the_hash_of_a_known_model_never_changes(version):
    # Golden: deltas that people have published carry such hashes; version 1 leaves out buffers of integers.
    found = fingerprint(Tiny(), version=version)
    count = ("count", "int64", (1,))

    assert [(leaf.name, leaf.dtype, leaf.shape) for leaf in found.leaves] == [
        *([count] if version > 1 else []),
        ("mean", "float32", (2,)),
        ("weight", "float32", (2, 3)),
    ]
    assert [leaf.hash for leaf in found.leaves] == [*([COUNT] if version > 1 else []), *LEAVES]
    assert found.hash == HASHES[version]


class Codes(nn.Module):
    """A layer of integer codes, whose scale is part of its state without being a parameter or a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.arange(6, dtype=torch.int32).view(2, 3))
        self.register_buffer("zeros", torch.tensor([True, False]))
        self.register_buffer("table", torch.ones(3, dtype=torch.int64), persistent=False)
        self.scale = torch.ones(2)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}scale"] = self.scale


@pytest.mark.parametrize("name", ["codes", "zeros", "scale"])
def test_all_saved_tensors_of_a_quantised_layer_count(name):
    twin = Codes()
    getattr(twin, name)[0] = 0 if name != "scale" else 2
    if name == "codes":
        twin.codes[0, 2] = 9

    assert level(Codes(), twin) == "same structure, other weights"
    assert fingerprint(Codes()).compare(fingerprint(twin)).detail.endswith(f": {name}")


class Packed(nn.Module):
    """A quantised layer that keeps scales and settings outside its parameters and buffers, as HQQ does."""

    def __init__(self):
        super().__init__()
        self.in_features, self.axis = 3, 1
        self.W_q = nn.Parameter(torch.zeros(2, 3, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("order", torch.arange(3), persistent=False)
        self.meta = {"scale": torch.ones(2), "zeros": [torch.ones(1)], "nbits": 4}


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.meta["scale"].add_(1),
        lambda layer: layer.meta["zeros"][0].add_(1),
        lambda layer: layer.meta.update(nbits=3),
        lambda layer: layer.order.add_(1),
        lambda layer: setattr(layer, "axis", 0),
    ],
    ids=["scale", "zeros", "nbits", "order", "axis"],
)
def test_whatever_decides_the_outputs_of_a_quantised_layer_counts(change):
    twin = Packed()
    change(twin)

    assert fingerprint(Packed()) == fingerprint(Packed())
    assert level(Packed(), twin) != "exact"
    assert fingerprint(Packed()).version == 3


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*are deprecated:UserWarning")
def test_codes_of_pytorch_s_own_quantisation_count():
    def quantised(factor):
        torch.manual_seed(0)
        layer = nn.quantized.dynamic.Linear(2, 2)
        weight = torch.quantize_per_tensor(torch.ones(2, 2) * factor, 0.1, 0, torch.qint8)
        layer.set_weight_bias(weight, torch.zeros(2))
        return nn.Sequential(layer)

    assert level(quantised(1), quantised(1)) == "exact"
    assert level(quantised(1), quantised(2)) == "same structure, other weights"


def test_a_buffer_that_is_not_saved_does_not_count():
    twin = Codes()
    twin.table += 1

    assert level(Codes(), twin) == "exact"


def test_a_tensor_made_of_others_has_a_leaf_for_each():
    model = nn.Module()
    model.weight = nn.Parameter(TwoTensor(torch.ones(2), torch.zeros(2)))

    assert [leaf.name for leaf in fingerprint(model).leaves] == ["weight.a", "weight.b"]


def test_equal_tensors_under_equal_names_have_equal_hashes():
    assert fingerprint(bert(1)).hash == fingerprint(bert(1)).hash
    assert level(bert(1), bert(1)) == "exact"


def test_one_bit_in_one_tensor_is_found_and_named():
    name = "bert.encoder.layer.1.output.dense.weight"
    difference = fingerprint(bert()).compare(fingerprint(change(bert(), name)))

    assert difference.level == "same structure, other weights"
    assert difference.detail == f"1 of {len(fingerprint(bert()).leaves)} tensors have other values: {name}"


def test_negative_zero_and_nan_are_other_bits():
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    assert level(model, change(model, "weight", -0.0)) == "exact"

    twin = copy.deepcopy(model)
    twin.weight.data.neg_()
    assert level(model, twin) == "same structure, other weights"


def test_another_precision_is_distinguished_from_other_weights():
    difference = fingerprint(bert()).compare(fingerprint(bert().bfloat16()))

    assert difference.level == "other precision"
    assert "is bfloat16, expected float32" in difference.detail


def test_renamed_tensors_are_distinguished_from_missing_ones():
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.model = inner

    difference = fingerprint(bert()).compare(fingerprint(Wrapped(bert())))
    assert difference.level == "renamed"
    assert "missing bert.embeddings.LayerNorm.bias" in difference.detail
    assert "unexpected model.bert.embeddings.LayerNorm.bias" in difference.detail
    assert level(bert(), Wrapped(bert(1))) == "incompatible"


@pytest.mark.parametrize("make", [bert_mlm, gpt2])
def test_resized_embeddings_are_distinguished_from_another_architecture(make):
    longer = make()
    longer.resize_token_embeddings(53, mean_resizing=False)
    difference = fingerprint(make()).compare(fingerprint(longer))

    assert difference.level == "resized embeddings"
    assert "is [53, 16], expected [50, 16]" in difference.detail


def test_another_width_is_incompatible():
    assert level(bert(), original("bert")) == "incompatible"


def test_modules_added_by_a_delta_do_not_count():
    backbone = bert()
    expected = fingerprint(backbone).hash
    stir(LoraModel(backbone))

    assert expected == fingerprint(backbone).hash


def test_tensors_left_out_or_put_in_place_of_others_decide_the_hash():
    backbone, head = bert(), ("classifier.weight", "classifier.bias")
    other = change(backbone, head[0])

    assert fingerprint(backbone, head).hash == fingerprint(other, head).hash
    assert fingerprint(backbone).hash != fingerprint(other).hash
    overrides_for(other, head[:1])[
        head[0]
    ].base = backbone.classifier.weight.detach()  # as while a delta has put its own there
    assert fingerprint(backbone).hash == fingerprint(other).hash


def test_tied_tensors_count_once():
    names = [name for name, _ in backbone_tensors(gpt2())]

    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e4m3fn])
def test_every_dtype_has_a_hash(dtype):
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(3, 2).to(dtype))

    assert fingerprint(model).leaves[0].dtype == str(dtype).removeprefix("torch.")


def test_a_tensor_that_is_not_contiguous_has_the_hash_of_its_values(monkeypatch):
    monkeypatch.setattr("deltahub.engine.fingerprint.BUFFER", 16)  # so that rows go through it one by one
    straight, turned = nn.Module(), nn.Module()
    values = torch.arange(60.0).view(3, 4, 5)
    straight.weight = nn.Parameter(values)
    turned.weight = nn.Parameter(values.permute(2, 1, 0).contiguous().permute(2, 1, 0))

    assert not turned.weight.is_contiguous()
    assert fingerprint(straight).hash == fingerprint(turned).hash


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_scalars_and_empty_tensors_have_a_hash(shape):
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(shape))

    assert fingerprint(model).leaves[0].shape == shape


def test_a_tensor_without_values_is_refused():
    with pytest.raises(
        DeltaHubError, match=r"weight is on the meta device and has no values\. Load the backbone's weights"
    ):
        fingerprint(nn.Linear(2, 2, device="meta"))


def test_a_fingerprint_survives_its_file():
    found = fingerprint(bert())
    data = found.to_bytes()

    assert Fingerprint.from_bytes(data) == found
    assert json.loads(data)["hash"] == found.hash
    assert data.count(b"\n") == len(found.leaves) + 2


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data: data[:-20], "is malformed"),
        (lambda data: data.replace(b'"float32"', b'"float16"', 1), "its list has the hash"),
        (lambda data: b'{"tensors": []}', "lacks"),
    ],
)
def test_a_spoilt_file_is_refused(spoil, why):
    with pytest.raises(CheckpointError, match=why):
        Fingerprint.from_bytes(spoil(fingerprint(bert()).to_bytes()))


def test_a_mismatch_says_what_was_expected_what_was_found_and_what_to_do():
    ours, theirs = fingerprint(bert()), fingerprint(bert(1))

    with pytest.raises(FingerprintMismatch) as caught:
        ours.require(theirs)

    assert all(
        text in str(caught.value) for text in (ours.hash, theirs.hash, 'check_hash="structure"', "check_hash=False")
    )


def test_taking_a_fingerprint_leaves_the_model_alone():
    backbone = bert()

    with untouched(backbone):
        fingerprint(backbone)
