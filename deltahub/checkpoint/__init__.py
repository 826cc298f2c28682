"""The checkpoint folder of a delta: its config, tensors, backbone record, card and manifest."""
