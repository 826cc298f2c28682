"""A hub that is killed under load has lost nothing that it acknowledged."""

from __future__ import annotations

import os

import numpy as np
import pytest
from safetensors.numpy import save

from tests.server.killing import Killing

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_hub_that_is_killed_while_clients_push_has_everything_that_it_acknowledged(tmp_path, workers):
    def content(number: int) -> bytes:
        return save({"w": np.full(1000, number, dtype=np.float32)})

    killing = Killing(tmp_path, content, workers=workers)
    while len(killing.acknowledged) < 20 or killing.cut < 4:
        killing.round(0.0, 0.5)
    assert killing.unexpected == []
    assert killing.lost() == []
    assert killing.damage() == []
