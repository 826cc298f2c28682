"""The delta types, one file each; importing this package registers them."""

from deltahub.deltas.adalora import AdaLoraConfig, AdaLoraModel
from deltahub.deltas.adapter import AdapterConfig, AdapterModel
from deltahub.deltas.bitfit import BitFitConfig, BitFitModel
from deltahub.deltas.compacter import CompacterConfig, CompacterModel
from deltahub.deltas.fusion import FusionConfig, FusionModel
from deltahub.deltas.ia3 import IA3Config, IA3Model
from deltahub.deltas.invertible_adapter import InvertibleAdapterConfig, InvertibleAdapterModel
from deltahub.deltas.layer_norm import LayerNormConfig, LayerNormModel
from deltahub.deltas.lora import LoraConfig, LoraModel
from deltahub.deltas.low_rank_adapter import LowRankAdapterConfig, LowRankAdapterModel
from deltahub.deltas.parallel_adapter import ParallelAdapterConfig, ParallelAdapterModel
from deltahub.deltas.prefix import PrefixConfig, PrefixModel
from deltahub.deltas.reft import ReftConfig, ReftModel
from deltahub.deltas.slots import LoraSlots, LoraSlotsConfig
from deltahub.deltas.soft_prompt import SoftPromptConfig, SoftPromptModel
from deltahub.deltas.token_rows import TokenRowsConfig, TokenRowsModel
from deltahub.deltas.union import UnionConfig, UnionModel
from deltahub.deltas.vera import VeraConfig, VeraModel
from deltahub.deltas.weight_update import WeightUpdateConfig, WeightUpdateModel

__all__ = [
    "AdaLoraConfig",
    "AdaLoraModel",
    "AdapterConfig",
    "AdapterModel",
    "BitFitConfig",
    "BitFitModel",
    "CompacterConfig",
    "CompacterModel",
    "FusionConfig",
    "FusionModel",
    "IA3Config",
    "IA3Model",
    "InvertibleAdapterConfig",
    "InvertibleAdapterModel",
    "LayerNormConfig",
    "LayerNormModel",
    "LoraConfig",
    "LoraModel",
    "LoraSlots",
    "LoraSlotsConfig",
    "LowRankAdapterConfig",
    "LowRankAdapterModel",
    "ParallelAdapterConfig",
    "ParallelAdapterModel",
    "PrefixConfig",
    "PrefixModel",
    "ReftConfig",
    "ReftModel",
    "SoftPromptConfig",
    "SoftPromptModel",
    "TokenRowsConfig",
    "TokenRowsModel",
    "UnionConfig",
    "UnionModel",
    "VeraConfig",
    "VeraModel",
    "WeightUpdateConfig",
    "WeightUpdateModel",
]
