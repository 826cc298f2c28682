"""OpenDelta's checkpoints: `config.json` and the pickle `pytorch_model.bin`."""
