"""PEFT's adapters: `adapter_config.json` and `adapter_model.safetensors`, read and written."""

from deltahub.renamed import forward

__getattr__ = forward(__name__, "export")
