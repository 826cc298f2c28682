"""OpenDelta's checkpoints: `config.json` and the pickle `pytorch_model.bin`."""

from deltahub.renamed import forward

__getattr__ = forward(__name__, "reading")
