"""The checkpoint folder of a delta: its config, tensors, backbone record, card and manifest."""

from deltahub.renamed import forward

__getattr__ = forward(__name__, "checkpoint")
