"""A delta that was trained and saved, for the tests of saving and of loading."""

from deltahub import AutoDeltaModel, LoraModel
from tests.backbones import bert, train


def trained(backbone, exclude=("deltas", "classifier")):
    """A delta after some training."""
    delta = LoraModel(backbone, lora_r=2)
    delta.freeze_module(exclude=list(exclude))
    train(backbone, 2)
    return delta


def load(folder, backbone=None, **options):
    backbone = backbone or bert()
    return AutoDeltaModel.from_finetuned(folder, backbone_model=backbone, **options)
