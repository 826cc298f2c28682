"""The module paths of OpenDelta, and which names each of them has."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final, NoReturn

from deltahub.compat.opendelta.configs import METHODS
from deltahub.errors import ConfigError

_ADDRESSING: Final = "endswith_in endswith_in_normal endswith_in_regex is_child_key superstring_in"
_PATHS: Final = {
    "auto_delta": "AutoDeltaConfig AutoDeltaModel",
    "basemodel": f"DeltaBase {_ADDRESSING}",
    "delta_configs": "BaseDeltaConfig",
    "delta_models": "BitFitModel LoraConfig LoraModel",
    **{f"delta_models.{method}": f"{name}Config {name}Model" for method, name in METHODS.items()},
    "utils": "",
    "utils.inspect": (
        "inspect_module_statistics inspect_optimizer_statistics "
        "num_delta_parameters num_total_parameters num_trainable_parameters"
    ),
    "utils.interactive": "",
    "utils.interactive.web": "interactive",
    "utils.logging": (
        "CRITICAL DEBUG ERROR FATAL INFO WARN WARNING get_logger get_verbosity set_verbosity "
        "set_verbosity_debug set_verbosity_error set_verbosity_info set_verbosity_warning"
    ),
    "utils.model_md5": "gen_model_hash gen_parameter_hash",
    "utils.name_based_addressing": _ADDRESSING,
    "utils.saving_loading_utils": "SaveLoadMixin",
    "utils.structure_mapping": "CommonStructureMap",
    "utils.visualization": "Visualization",
}
_EXTENDING: Final = "Write a method of your own with new_insertion and the layers of PyTorch (docs/extending.md)."
# Modules whose content has no counterpart, and the alternative.
_ABSENT: Final = {
    "delta_models.layers": _EXTENDING,
    "delta_models.layers.activations": _EXTENDING,
    "delta_models.layers.init": _EXTENDING,
    "delta_models.layers.hypercomplex_linear": "deltahub.deltas.compacter.HypercomplexLinear has this layer.",
    "delta_models.layers.low_rank_linear": "LowRankAdapterModel has this layer.",
    "utils.backend": "Any model of PyTorch works; there is no other backend.",
    **{
        f"utils.common_structures{family}": "deltahub.CommonStructureMap.of(model) has the common names of a model."
        for family in ("", ".bert", ".debertav2", ".gpt2", ".opt", ".roberta", ".t5")
    },
    "utils.cuda": "A parameter has its device and dtype, as next(module.parameters()).device.",
    "utils.data_parallel": "Deltas run through hooks, which PyTorch copies itself.",
    "utils.decorate": _EXTENDING,
    "utils.delta_center": "The DeltaCenter no longer exists. deltahub.push and deltahub.pull use the registries that you configure.",
    "utils.delta_hub": "Use deltahub.push and deltahub.pull.",
    "utils.file_utils": "from_finetuned and save_finetuned know the names of their files.",
    "utils.signature": "inspect.signature of Python returns the arguments of a function.",
}


class AbsentModule(ModuleType):
    """A module of OpenDelta without a counterpart: any of its names is refused with the alternative."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        msg = f"{self.__name__}.{name} has no counterpart in DeltaHub. {self.__doc__}"
        raise ConfigError(msg)


def new_modules(root: str, names: Mapping[str, Any]) -> dict[str, ModuleType]:
    """Return a module for each path below the root, by its path; those inside a package are also attributes of the package.

    Args:
        names: the classes and functions, by name.
    """
    modules: dict[str, ModuleType] = {}
    for path in sorted({**_PATHS, **_ABSENT}):
        kind = AbsentModule if path in _ABSENT else ModuleType
        module = kind(f"{root}.{path}", _ABSENT.get(path, "A module of OpenDelta, by DeltaHub."))
        module.__path__ = []
        vars(module).update({name: names[name] for name in _PATHS.get(path, "").split()})
        modules[path] = module
        parent, _, name = path.rpartition(".")
        if parent:
            setattr(modules[parent], name, module)
    return modules


def register(name: str, module: ModuleType, parts: Mapping[str, ModuleType]) -> None:
    """Let a name and the paths below it mean a module and its parts in this process.

    Raises:
        ConfigError: another module of that name is imported already. Nothing was changed.
    """
    taken = sys.modules.get(name)
    if taken is not None and taken is not module:
        msg = f"{name} is imported already, from {getattr(taken, '__file__', 'elsewhere')}. Call install() before anything imports it."
        raise ConfigError(msg)
    sys.modules[name] = module
    sys.modules.update({f"{name}.{path}": part for path, part in parts.items()})
