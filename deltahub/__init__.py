"""DeltaHub: make, keep, find and load deltas, the small trained parts that turn one backbone into a model for one task.

Names are imported on first use, so that `import deltahub` and the command line need no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from deltahub.renamed import RenamedModules
from deltahub.version import VERSION

if TYPE_CHECKING:
    from deltahub.algebra.combine import combine as combine
    from deltahub.algebra.diff import diff as diff
    from deltahub.algebra.extract import extract as extract
    from deltahub.algebra.lineage import verify_lineage as verify_lineage
    from deltahub.algebra.resize import resize as resize
    from deltahub.algebra.scale import scale as scale
    from deltahub.api import amend as amend
    from deltahub.api import list_deltas as list_deltas
    from deltahub.api import pull as pull
    from deltahub.api import push as push
    from deltahub.api import remove as remove
    from deltahub.api import rename as rename
    from deltahub.api import set_alias as set_alias
    from deltahub.api import set_tags as set_tags
    from deltahub.api import undo as undo
    from deltahub.auto import AutoDeltaConfig as AutoDeltaConfig
    from deltahub.auto import AutoDeltaModel as AutoDeltaModel
    from deltahub.checkpoint.config import BaseDeltaConfig as BaseDeltaConfig
    from deltahub.checkpoint.config import DeltaConfig as DeltaConfig
    from deltahub.conversion.convert import convert as convert
    from deltahub.deltas import AdaLoraConfig as AdaLoraConfig
    from deltahub.deltas import AdaLoraModel as AdaLoraModel
    from deltahub.deltas import AdapterConfig as AdapterConfig
    from deltahub.deltas import AdapterModel as AdapterModel
    from deltahub.deltas import BitFitConfig as BitFitConfig
    from deltahub.deltas import BitFitModel as BitFitModel
    from deltahub.deltas import CompacterConfig as CompacterConfig
    from deltahub.deltas import CompacterModel as CompacterModel
    from deltahub.deltas import FusionConfig as FusionConfig
    from deltahub.deltas import FusionModel as FusionModel
    from deltahub.deltas import IA3Config as IA3Config
    from deltahub.deltas import IA3Model as IA3Model
    from deltahub.deltas import InvertibleAdapterConfig as InvertibleAdapterConfig
    from deltahub.deltas import InvertibleAdapterModel as InvertibleAdapterModel
    from deltahub.deltas import LayerNormConfig as LayerNormConfig
    from deltahub.deltas import LayerNormModel as LayerNormModel
    from deltahub.deltas import LoraConfig as LoraConfig
    from deltahub.deltas import LoraModel as LoraModel
    from deltahub.deltas import LoraSlots as LoraSlots
    from deltahub.deltas import LowRankAdapterConfig as LowRankAdapterConfig
    from deltahub.deltas import LowRankAdapterModel as LowRankAdapterModel
    from deltahub.deltas import ParallelAdapterConfig as ParallelAdapterConfig
    from deltahub.deltas import ParallelAdapterModel as ParallelAdapterModel
    from deltahub.deltas import PrefixConfig as PrefixConfig
    from deltahub.deltas import PrefixModel as PrefixModel
    from deltahub.deltas import ReftConfig as ReftConfig
    from deltahub.deltas import ReftModel as ReftModel
    from deltahub.deltas import SoftPromptConfig as SoftPromptConfig
    from deltahub.deltas import SoftPromptModel as SoftPromptModel
    from deltahub.deltas import TokenRowsConfig as TokenRowsConfig
    from deltahub.deltas import TokenRowsModel as TokenRowsModel
    from deltahub.deltas import UnionConfig as UnionConfig
    from deltahub.deltas import UnionModel as UnionModel
    from deltahub.deltas import VeraConfig as VeraConfig
    from deltahub.deltas import VeraModel as VeraModel
    from deltahub.deltas import WeightUpdateConfig as WeightUpdateConfig
    from deltahub.deltas import WeightUpdateModel as WeightUpdateModel
    from deltahub.engine.drawing.visualize import Visualization as Visualization
    from deltahub.engine.structure.names import CommonStructureMap as CommonStructureMap
    from deltahub.formats.peft.export import export_peft as export_peft
    from deltahub.handle.base import DeltaBase as DeltaBase
    from deltahub.handle.base import deltas_of as deltas_of
    from deltahub.handle.merging import merged_copy as merged_copy
    from deltahub.handle.recording import record_backbone as record_backbone
    from deltahub.handle.routing import route as route
    from deltahub.handle.saving import SaveLoadMixin as SaveLoadMixin

__version__ = VERSION
sys.meta_path.append(RenamedModules())

_HOMES = {
    "AdaLoraConfig": "deltas",
    "AdaLoraModel": "deltas",
    "AdapterConfig": "deltas",
    "AdapterModel": "deltas",
    "AutoDeltaConfig": "auto",
    "AutoDeltaModel": "auto",
    "BaseDeltaConfig": "checkpoint.config",
    "BitFitConfig": "deltas",
    "BitFitModel": "deltas",
    "CommonStructureMap": "engine.structure.names",
    "CompacterConfig": "deltas",
    "CompacterModel": "deltas",
    "DeltaBase": "handle.base",
    "DeltaConfig": "checkpoint.config",
    "FusionConfig": "deltas",
    "FusionModel": "deltas",
    "IA3Config": "deltas",
    "IA3Model": "deltas",
    "InvertibleAdapterConfig": "deltas",
    "InvertibleAdapterModel": "deltas",
    "LayerNormConfig": "deltas",
    "LayerNormModel": "deltas",
    "LoraConfig": "deltas",
    "LoraModel": "deltas",
    "LoraSlots": "deltas",
    "LowRankAdapterConfig": "deltas",
    "LowRankAdapterModel": "deltas",
    "ParallelAdapterConfig": "deltas",
    "ParallelAdapterModel": "deltas",
    "PrefixConfig": "deltas",
    "PrefixModel": "deltas",
    "ReftConfig": "deltas",
    "ReftModel": "deltas",
    "SaveLoadMixin": "handle.saving",
    "SoftPromptConfig": "deltas",
    "SoftPromptModel": "deltas",
    "TokenRowsConfig": "deltas",
    "TokenRowsModel": "deltas",
    "UnionConfig": "deltas",
    "UnionModel": "deltas",
    "VeraConfig": "deltas",
    "VeraModel": "deltas",
    "Visualization": "engine.drawing.visualize",
    "WeightUpdateConfig": "deltas",
    "WeightUpdateModel": "deltas",
    "amend": "api",
    "combine": "algebra.combine",
    "convert": "conversion.convert",
    "deltas_of": "handle.base",
    "diff": "algebra.diff",
    "export_peft": "formats.peft.export",
    "extract": "algebra.extract",
    "list_deltas": "api",
    "merged_copy": "handle.merging",
    "pull": "api",
    "push": "api",
    "record_backbone": "handle.recording",
    "remove": "api",
    "rename": "api",
    "resize": "algebra.resize",
    "route": "handle.routing",
    "scale": "algebra.scale",
    "set_alias": "api",
    "set_tags": "api",
    "undo": "api",
    "verify_lineage": "algebra.lineage",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604  (names of _HOMES are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module 'deltahub' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"deltahub.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
