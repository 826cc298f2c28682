"""PEFT's adapters: `adapter_config.json` and `adapter_model.safetensors`, read and written."""
