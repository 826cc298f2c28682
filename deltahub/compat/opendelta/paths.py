"""The module paths of OpenDelta, and which names each of them has."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, Final, NoReturn

from deltahub.engine.drawing.visualize import Visualization
from deltahub.errors import ConfigError
from deltahub.handle.saving import SaveLoadMixin

_METHODS: Final = {
    "adapter": "Adapter",
    "bitfit": "BitFit",
    "compacter": "Compacter",
    "lora": "Lora",
    "low_rank_adapter": "LowRankAdapter",
    "parallel_adapter": "ParallelAdapter",
    "prefix": "Prefix",
    "soft_prompt": "SoftPrompt",
}


def _module(name: str) -> ModuleType:
    # The package imports this file while it is being imported itself.
    return import_module(f"deltahub.compat.opendelta.{name}")


def _of(module: str, *names: str) -> dict[str, Any]:
    return {name: getattr(_module(module), name) for name in names}


_INSPECT: Final = [name for name in vars(_module("counting")) if name.startswith(("inspect_", "num_"))]
_ADDRESSING: Final = ("superstring_in", "is_child_key", "endswith_in", "endswith_in_normal", "endswith_in_regex")
_PATHS: Final[dict[str, dict[str, Any]]] = {
    "auto_delta": _of("models", "AutoDeltaConfig", "AutoDeltaModel"),
    "basemodel": {**_of("base", "DeltaBase"), **_of("tools", *_ADDRESSING)},
    "delta_configs": _of("configs", "BaseDeltaConfig"),
    "delta_models": {},
    **{
        f"delta_models.{method}": {
            f"{name}Model": getattr(_module("models"), f"{name}Model"),
            f"{name}Config": getattr(_module("configs"), f"{name}Config"),
        }
        for method, name in _METHODS.items()
    },
    "utils": {},
    "utils.cuda": _of("tools", "get_device", "get_dtype"),
    "utils.inspect": _of("counting", *_INSPECT),
    "utils.interactive": {},
    "utils.interactive.web": _of("models", "interactive"),
    "utils.logging": _of("logging", *(name for name in vars(_module("logging")) if not name.startswith("_"))),
    "utils.model_md5": _of("tools", "gen_model_hash", "gen_parameter_hash"),
    "utils.name_based_addressing": _of("tools", *_ADDRESSING),
    "utils.saving_loading_utils": {"SaveLoadMixin": SaveLoadMixin},
    "utils.signature": {**_of("tools", "signature", "get_arg_names", "get_arg_names_inside_func")},
    "utils.structure_mapping": _of("tools", "CommonStructureMap"),
    "utils.visualization": {"Visualization": Visualization},
}
# Modules whose content has no counterpart, and the alternative.
_ABSENT: Final = {
    "delta_models.layers": "Write a method of your own with the layers of PyTorch (docs/extending.md).",
    "delta_models.layers.activations": "Write a method of your own with the layers of PyTorch (docs/extending.md).",
    "delta_models.layers.hypercomplex_linear": "deltahub.deltas.compacter.HypercomplexLinear has this layer.",
    "delta_models.layers.low_rank_linear": "LowRankAdapterModel has this layer.",
    "utils.backend": "Any model of PyTorch works; there is no other backend.",
    "utils.data_parallel": "Deltas run through hooks, which PyTorch copies itself.",
    "utils.decorate": "Deltas run through hooks; write a method of your own with new_insertion (docs/extending.md).",
    "utils.delta_center": "The DeltaCenter no longer exists. deltahub.push and deltahub.pull use the registries that you configure.",
    "utils.delta_hub": "Use deltahub.push and deltahub.pull.",
}


class AbsentModule(ModuleType):
    """A module of OpenDelta without a counterpart: any of its names is refused with the alternative."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        msg = f"{self.__name__}.{name} has no counterpart in DeltaHub. {self.__doc__}"
        raise ConfigError(msg)


def new_modules(root: str) -> dict[str, ModuleType]:
    """Return a module for each path below the root, by its path; those inside a package are also attributes of the package."""
    modules: dict[str, ModuleType] = {}
    for path in sorted({**_PATHS, **_ABSENT}):
        kind = AbsentModule if path in _ABSENT else ModuleType
        module = kind(f"{root}.{path}", _ABSENT.get(path, "A module of OpenDelta, by DeltaHub."))
        module.__path__ = []
        vars(module).update(_PATHS.get(path, {}))
        modules[path] = module
        parent, _, name = path.rpartition(".")
        if parent:
            setattr(modules[parent], name, module)
    return modules


def register(name: str, module: ModuleType | str, parts: Mapping[str, ModuleType]) -> None:
    """Let a name and the paths below it mean a module and its parts in this process.

    Args:
        module: the module, or its name if it is imported already.

    Raises:
        ConfigError: another module of that name is imported already. Nothing was changed.
    """
    module = sys.modules[module] if isinstance(module, str) else module
    taken = sys.modules.get(name)
    if taken is not None and taken is not module:
        msg = f"{name} is imported already, from {getattr(taken, '__file__', 'elsewhere')}. Call install() before anything imports it."
        raise ConfigError(msg)
    sys.modules[name] = module
    sys.modules.update({f"{name}.{path}": part for path, part in parts.items()})
