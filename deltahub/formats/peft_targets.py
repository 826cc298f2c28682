"""Which modules a config of PEFT names: PEFT's own rules of matching, so that what a file lacks is noticed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from torch import nn

from deltahub.engine.shapes import is_conv1d
from deltahub.errors import AddressError, ConfigError
from deltahub.log import LOGGER
from deltahub.patterns import LinearPattern, linear

# The heads that PEFT saves with an adapter for a task, whether or not its config names them.
_HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def targeted(config: Mapping[str, Any], modules: Mapping[str, nn.Module], backbone: nn.Module) -> set[str] | None:
    """The modules that `target_modules` names, less those that other fields leave out; None if the config does not say.

    A warning says so where it says it by a pattern that cannot be matched in linear time: then the tensors alone tell.

    Args:
        modules: the backbone's, by name.
    """
    try:
        return _targeted(config, modules, backbone)
    except ConfigError as error:
        LOGGER.warning("Nobody can check that the adapter's file lacks no module. %s", error)
        return None


def _targeted(config: Mapping[str, Any], modules: Mapping[str, nn.Module], backbone: nn.Module) -> set[str] | None:
    targets = config.get("target_modules")
    if not targets:
        return None
    saved = names_to_save(config)
    kept = {
        name
        for name in modules.keys() - meant(config.get("exclude_modules") or (), modules)
        if not any(_compiled(rf"(?:.*\.)?{key}(?:\..*)?").fullmatch(name) for key in saved)
    }
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return {name for name in kept if _is_linear(modules[name]) and modules[name] is not _output(backbone)}
    found = meant(targets, kept)
    if isinstance(targets, str) or config.get("layers_to_transform") in (None, []):
        return found
    return {name for name in found if _is_in_layers(name, config)}


def meant(targets: str | Iterable[str], names: Iterable[str]) -> set[str]:
    """The names of modules that are meant: a string is a regex for the whole name, a list holds names and ends of names."""
    if isinstance(targets, str):
        return {name for name in names if _compiled(targets).fullmatch(name)}
    ends = frozenset(targets)  # a mixture of experts has thousands
    return {name for name in names if any(end in ends for end in _ends(name))}


def _ends(name: str) -> Iterator[str]:
    """A name and what is left of it after each dot."""
    while True:
        yield name
        _, dot, name = name.partition(".")
        if not dot:
            return


def _compiled(pattern: str) -> LinearPattern:
    try:
        return linear(pattern)
    except AddressError as error:
        msg = f"The adapter's config has a pattern that cannot be used. {error} Load it with PEFT."
        raise ConfigError(msg) from error


def _is_in_layers(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a module is in one of the layers of `layers_to_transform`."""
    layers, patterns = config["layers_to_transform"], config.get("layers_pattern") or ()
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    lists = [rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\..*" for pattern in patterns] or [
        r".*?\.[^.]*\.(?P<layer>\d+)\..*"
    ]
    match = next((match for match in (_compiled(text).fullmatch(name) for text in lists) if match), None)
    return match is not None and int(match.group("layer")) in ([layers] if isinstance(layers, int) else layers)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _output(backbone: nn.Module) -> nn.Module | None:
    """The layer that "all-linear" leaves out."""
    get = getattr(backbone, "get_output_embeddings", None)
    return get() if callable(get) else None


def by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The value that `rank_pattern` or `alpha_pattern` has for a module: that of the first pattern that matches."""
    for pattern, value in (patterns or {}).items():
        if _compiled(rf"(?:.*\.)?(?:{pattern})").fullmatch(name):
            return value
    return default


def names_to_save(config: Mapping[str, Any]) -> list[str]:
    """The ends of the names of modules that PEFT replaces as a whole."""
    given = config.get("modules_to_save") or ()
    return [*([given] if isinstance(given, str) else given), *_HEADS.get(str(config.get("task_type")), ())]


def to_save(config: Mapping[str, Any], modules: Collection[str]) -> set[str]:
    """The modules that PEFT replaces as a whole; as in PEFT, a name means each module whose own name ends so."""
    return {name for name in modules if name and any(name.endswith(end) for end in names_to_save(config))}


def unmatched(config: Mapping[str, Any], modules: Collection[str]) -> list[str]:
    """The names in `modules_to_save` that mean no module; a task's heads may be absent."""
    optional = {head for heads in _HEADS.values() for head in heads}
    names = set(names_to_save(config)) - optional
    return sorted(name for name in names if not any(module.endswith(name) for module in modules))
