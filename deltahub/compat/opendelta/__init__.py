"""OpenDelta's interface: its names, module paths and calling conventions over the classes of DeltaHub.

    from deltahub.compat import opendelta     # opendelta.LoraModel, opendelta.utils.inspect, ...
    opendelta.install()                       # from here on, `import opendelta` means this module

Unknown keys of a config and unmatched `unfrozen_modules` are passed over with a warning, as OpenDelta passes over them. All
else keeps DeltaHub's checks. A call that has no meaning here is refused with an error that names the alternative.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

from deltahub.compat.opendelta import base, configs, counting, logging, tools
from deltahub.compat.opendelta.arguments import DeltaArguments
from deltahub.compat.opendelta.base import DeltaBase
from deltahub.compat.opendelta.configs import BaseDeltaConfig
from deltahub.compat.opendelta.factories import AutoDeltaConfig, AutoDeltaModel, interactive
from deltahub.compat.opendelta.paths import new_modules, register
from deltahub.compat.opendelta.settings import global_setting, set_axis_order
from deltahub.compat.opendelta.tools import CommonStructureMap
from deltahub.engine.drawing.visualize import Visualization
from deltahub.handle.saving import SaveLoadMixin

__all__ = [
    "AdapterModel",
    "AutoDeltaConfig",
    "AutoDeltaModel",
    "BaseDeltaConfig",
    "BitFitModel",
    "CommonStructureMap",
    "CompacterModel",
    "DeltaArguments",
    "DeltaBase",
    "LoraModel",
    "LowRankAdapterModel",
    "ParallelAdapterModel",
    "PrefixModel",
    "SaveLoadMixin",
    "SoftPromptModel",
    "Visualization",
    "global_setting",
    "install",
    "interactive",
    "logging",
    "set_axis_order",
]
__version__ = "0.3.2"  # the release of OpenDelta whose interface this is

globals().update({model_class.__name__: model_class for model_class in base.MODELS.values()})
_NAMES = {name: value for module in (base, configs, counting, logging, tools) for name, value in vars(module).items()}
_MODULES = new_modules("opendelta", {**_NAMES, **globals()})
globals().update({path: module for path, module in _MODULES.items() if "." not in path})


def install() -> None:
    """Make `import opendelta`, and `import bigmodelvis` unless that package is installed, mean this module in this process.

    Raises:
        ConfigError: OpenDelta itself is imported already.
    """
    register("opendelta", sys.modules[__name__], _MODULES)
    if "bigmodelvis" not in sys.modules and find_spec("bigmodelvis") is None:
        drawing = ModuleType("bigmodelvis", "Pictures of models, by DeltaHub.")
        drawing.Visualization = Visualization  # type: ignore[attr-defined]
        register("bigmodelvis", drawing, {})
