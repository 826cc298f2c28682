"""Backbones that accelerate offloads in part: an offloaded tensor is on the meta device between calls.

accelerate puts a hook on each module that owns such a tensor. The hook fetches the values from its `weights_map` to its
`execution_device` before the module's forward, and drops them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from deltahub.engine.modules import modules_by_name, own_modules
from deltahub.errors import ConfigError, DeltaHubError

HOOK: Final = "_hf_hook"  # the attribute with the hook


def resident(module: nn.Module, key: str) -> Any:
    """Return a module's own tensor with its values, fetched if offloaded; None if the module has no such tensor."""
    tensor = getattr(module, key, None)
    hook = _hook(module)
    if hook is None or not (isinstance(tensor, Tensor) and tensor.is_meta):
        return tensor
    return _stored(hook, key, key).to(_device(hook))


def offloaded(backbone: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Return the offloaded tensors of a backbone by name, each as a function that reads its values where they are."""
    return {
        f"{name}.{key}" if name else key: partial(_stored, hook, key, f"{name}.{key}")
        for name, module in own_modules(backbone)
        if (hook := _hook(module)) is not None
        for key, tensor in _own_tensors(module)
        if tensor.is_meta
    }


def stored_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state that accelerate keeps of an offloaded module by its names there, such as the scales of quantised codes."""
    hook = _hook(module)
    if hook is None or not any(tensor.is_meta for _, tensor in _own_tensors(module)):
        return {}
    prefix = getattr(hook.weights_map, "prefix", "")
    names = [key.removeprefix(prefix) for key in hook.weights_map]
    own_names = [name for name in names if name.partition(".")[0] not in module._modules]
    return {name: _stored(hook, name, f"{prefix}{name}") for name in own_names}


def _stored(hook: Any, key: str, name: str) -> Tensor:
    """Read an offloaded tensor where it is kept.

    Raises:
        DeltaHubError: its file is missing or damaged.
    """
    try:
        tensor: Tensor = hook.weights_map[key]
    except (KeyError, OSError, ValueError, SafetensorError) as error:
        msg = f"The values of {name}, which is offloaded, cannot be read: {error}. Load the backbone again, with an offload_folder that is kept."
        raise DeltaHubError(msg) from error
    return tensor


def device_of(module: nn.Module, backbone: nn.Module) -> torch.device:
    """Return the device a module computes on: that of its first tensor, of any dtype, or else of the backbone's."""
    for owner in _possible_owners(module, backbone):
        for _, tensor in _own_tensors(owner):
            hook = _hook(owner) if tensor.is_meta else None
            return tensor.device if hook is None else _device(hook)
    return torch.device("cpu")


def _possible_owners(module: nn.Module, backbone: nn.Module) -> Iterator[nn.Module]:
    """Yield a module, those inside it, and those of the backbone; most have tensors of their own, which saves the walk."""
    yield module
    yield from modules_by_name(module).values()
    yield from modules_by_name(backbone).values()


def refuse_offloaded_as_a_whole(name: str, module: nn.Module) -> None:
    """Raise if the hook of a module fetches the tensors of all modules inside it, where it would not find a delta's.

    Args:
        name: the name of the module.

    Raises:
        ConfigError: it does.
    """
    if (hook := _hook(module)) is not None and hook.place_submodules:
        msg = (
            f"accelerate offloads {name or 'the backbone'} with all that is in it at once (preload_module_classes), and does not "
            "know a delta's tensors. Offload the backbone without preload_module_classes."
        )
        raise ConfigError(msg)


def without_hooks(clone: nn.Module) -> nn.Module:
    """Remove accelerate's hooks, which move tensors with values, from a copy of a backbone, and return the copy."""
    for module in clone.modules():
        if "_old_forward" in module.__dict__:
            module.forward = module.__dict__.pop("_old_forward")
            module.__dict__.pop(HOOK, None)
    return clone


def hooks(backbone: nn.Module) -> Iterator[Any]:
    """Iterate over accelerate's hooks on the backbone's modules."""
    return (hook for module in backbone.modules() if (hook := module.__dict__.get(HOOK)) is not None)


def _hook(module: nn.Module) -> Any:
    """Return the hook that offloads a module's tensors, alone or among several, or None."""
    hook = getattr(module, "__dict__", {}).get(HOOK)
    if hook is None:
        return None
    return next(
        (candidate for candidate in getattr(hook, "hooks", (hook,)) if getattr(candidate, "offload", False)), None
    )


def _device(hook: Any) -> torch.device:
    return torch.device("cpu" if hook.execution_device is None else hook.execution_device)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    named_tensors = chain(module._parameters.items(), module._buffers.items())
    return ((key, tensor) for key, tensor in named_tensors if tensor is not None)
