"""torch.compile: one graph through backbone and delta, in training too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.backbones import bert
from tests.training.matrix import HEADED, KINDS, put_on, require_carries_over, train_plainly


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


def one_block() -> nn.Module:
    """A BERT of one block: compiling takes seconds for each."""
    backbone = bert()
    backbone.bert.encoder.layer = backbone.bert.encoder.layer[:1]
    return backbone


# The compiler looks at the gradient of every tensor that it meets, of one that a soft prompt has made too; torch warns of that.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_backbone_trains_as_it_does_without(kind, tmp_path):
    plain, backbone = one_block(), one_block()
    put_on(plain, kind, train=HEADED)
    delta = put_on(backbone, kind, train=HEADED)
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)

    expected = train_plainly(plain, 3)
    assert expected == pytest.approx(train_plainly(backbone, 3, call=compiled), abs=1e-5)
    assert len(set(expected)) == 3
    require_carries_over(delta, tmp_path, one_block)
