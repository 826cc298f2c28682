"""The modules of a backbone that a PEFT config targets, to notice tensors missing from a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from deltahub.engine.shapes import is_conv1d
from deltahub.errors import ConfigError
from deltahub.formats.peft.module_matching import HEADS, is_in_layers, left_out, meant, saved
from deltahub.log import LOGGER
from deltahub.text.patterns import UnsupportedPatternError


def targeted(config: Mapping[str, Any], modules: Mapping[str, nn.Module], backbone: nn.Module) -> set[str] | None:
    """Return the modules targeted by `target_modules` and not excluded by other fields; None if the config does not name any.

    If a pattern cannot be matched in linear time, log a warning and return None: then only the tensors show the modules.

    Args:
        modules: the backbone's modules by name.

    Raises:
        ConfigError: a pattern is not a regular expression.
    """
    try:
        return _targeted(config, modules, backbone)
    except ConfigError as error:
        if not isinstance(error.__cause__, UnsupportedPatternError):
            raise  # PEFT cannot read it either
        LOGGER.warning("Cannot check that the adapter's file has the tensors of all modules. %s", error)
        return None


def _targeted(config: Mapping[str, Any], modules: Mapping[str, nn.Module], backbone: nn.Module) -> set[str] | None:
    targets = config.get("target_modules")
    if not targets:
        return None
    candidates = set(modules)
    if excluded := config.get("exclude_modules"):
        candidates -= meant(excluded, modules)
    if kept := names_to_save(config):
        candidates -= left_out(kept, candidates)
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return {name for name in candidates if _is_linear(modules[name]) and modules[name] is not _output(backbone)}
    matches = meant(targets, candidates)
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or layers in (None, []):
        return matches
    return {name for name in matches if is_in_layers(name, layers, config.get("layers_pattern") or ())}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _output(backbone: nn.Module) -> nn.Module | None:
    """Return the output layer, which "all-linear" leaves out."""
    get = getattr(backbone, "get_output_embeddings", None)
    return get() if callable(get) else None


def names_to_save(config: Mapping[str, Any]) -> list[str]:
    """Return the ends of the names of modules that PEFT replaces as a whole."""
    names = config.get("modules_to_save") or ()
    return [*([names] if isinstance(names, str) else names), *HEADS.get(str(config.get("task_type")), ())]


def to_save(config: Mapping[str, Any], modules: Collection[str]) -> set[str]:
    """Return the modules that PEFT replaces as a whole."""
    return saved(names_to_save(config), modules)


def unmatched(config: Mapping[str, Any], modules: Collection[str]) -> list[str]:
    """Return the names in `modules_to_save` that match no module; a task's heads may be absent."""
    optional = {head for heads in HEADS.values() for head in heads}
    names = set(names_to_save(config)) - optional
    return sorted(name for name in names if not saved([name], modules))
