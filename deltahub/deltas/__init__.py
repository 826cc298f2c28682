"""The delta types, one file each; importing this package registers them."""

from deltahub.deltas.adapter import AdapterConfig, AdapterModel
from deltahub.deltas.bitfit import BitFitConfig, BitFitModel
from deltahub.deltas.lora import LoraConfig, LoraModel

__all__ = ["AdapterConfig", "AdapterModel", "BitFitConfig", "BitFitModel", "LoraConfig", "LoraModel"]
