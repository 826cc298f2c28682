import json

import torch
from torch import nn

from deltahub.formats.opendelta.reading import opendelta_hash
from tests.backbones import OPENDELTA

MD5 = json.loads((OPENDELTA / "_tables" / "md5.json").read_text())


def test_the_hash_of_a_known_model_is_that_of_the_original():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(6.0).view(2, 3))
        model[0].bias.fill_(0.5)

    assert MD5["with_parameters"] == opendelta_hash(model, MD5["str"])
    assert MD5["structure_only"] == opendelta_hash(nn.Module(), MD5["str"])
    assert MD5["parameters_only"] == opendelta_hash(model, "")
    assert MD5["with_parameters"] == opendelta_hash(model)


def test_the_hash_knows_bfloat16():
    assert opendelta_hash(nn.Linear(1, 1).bfloat16()) != opendelta_hash(nn.Linear(1, 1))
