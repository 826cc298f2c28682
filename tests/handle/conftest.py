import pytest

from tests.backbones import bert, logits_of
from tests.handle.saved import trained


@pytest.fixture
def saved(tmp_path):
    """The folder of a saved delta with a classifier head, and the logits that it gives."""
    backbone = bert()
    trained(backbone).save_finetuned(tmp_path / "delta")
    return tmp_path / "delta", logits_of(backbone)
