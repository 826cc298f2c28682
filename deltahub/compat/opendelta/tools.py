"""OpenDelta's functions on names, signatures, hashes and devices (`opendelta.utils`)."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from deltahub.checkpoint.address import REGEX_MARK, matches_any
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap
from deltahub.errors import AddressError
from deltahub.formats.opendelta.reading import opendelta_hash


class CommonStructureMap:
    """The common names of a backbone, with OpenDelta's methods.

    Args:
        backbone_model: the model.
        options: kept for OpenDelta's signature.
    """

    def __init__(self, backbone_model: nn.Module, *options: Any, **more: Any) -> None:
        self.structure = StructureMap.of(backbone_model)

    @classmethod
    def load(cls, backbone_model: nn.Module, *options: Any, **more: Any) -> CommonStructureMap:
        """Find the common names of a model."""
        return cls(backbone_model)

    def transform(self, org_key: str, strict: bool = True, warning: bool = False) -> tuple[str, str | None, None]:
        """Return the common name of a module, that of its group, and None.

        Raises:
            AddressError: with `strict`, the last part of the name has no common name; or it is part of a group, whose order is not known.
        """
        common, group = self.structure.common_name(org_key), self.structure.group_name(org_key)
        if strict and not common.rstrip("0123456789.").endswith(MARK):
            msg = f"{org_key} has no common name. Pass strict=False to keep the parts that have none."
            raise AddressError(msg)
        if group is not None:
            msg = f"{org_key} is a part of {group}, and its place there is not known. deltahub.CommonStructureMap.of(model).variants gives its names."
            raise AddressError(msg)
        return common, group, None

    def __getattr__(self, name: str) -> Any:
        if name == "structure":  # not made yet: a copy or a pickle is being read
            raise AttributeError(name)
        return getattr(self.structure, name)


# ----- opendelta.utils.name_based_addressing -----


def superstring_in(str_a: str, list_b: Iterable[str]) -> bool:
    """Return whether a string is contained in one of the strings."""
    return any(str_a in str_b for str_b in list_b)


def is_child_key(str_a: str, list_b: Iterable[str]) -> bool:
    """Return whether a name is one of the names, or inside one of these modules."""
    return any(f"{str_a}.".startswith(f"{str_b}.") for str_b in list_b)


def endswith_in_normal(str_a: str, list_b: Iterable[str]) -> bool:
    """Return whether the last parts of a name are one of the plain addresses."""
    return matches_any(str_a, [str_b for str_b in list_b if not str_b.startswith(REGEX_MARK)])


def endswith_in_regex(str_a: str, list_b: Iterable[str]) -> bool:
    """Return whether the last parts of a name match one of the regular expressions, written without ``[r]``."""
    return matches_any(str_a, [REGEX_MARK + str_b for str_b in list_b])


def endswith_in(str_a: str, list_b: Iterable[str]) -> bool:
    """Return whether the last parts of a name match one of the addresses; regular expressions begin with ``[r]``."""
    return matches_any(str_a, list_b)


# ----- opendelta.utils.signature -----


class Signature(NamedTuple):
    """The arguments of a function."""

    args: list[str]
    defaults: list[Any] | None
    varargs: str | None
    keywords: str | None


def signature(f: Callable[..., Any]) -> Signature:
    """Return the arguments of a function that may be passed by position, their defaults, and the names of ``*`` and ``**``."""
    parameters = inspect.signature(f).parameters.values()
    kinds = {p.kind: p.name for p in parameters}
    plain = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    defaults = [p.default for p in plain if p.default is not p.empty] or None
    kind = inspect.Parameter
    return Signature([p.name for p in plain], defaults, kinds.get(kind.VAR_POSITIONAL), kinds.get(kind.VAR_KEYWORD))


def get_arg_names(f: Callable[..., Any]) -> list[str]:
    """Return the names of a function's arguments without ``self``."""
    names = signature(f).args
    return names[1:] if names[:1] == ["self"] else names


def get_arg_names_inside_func(func: Any) -> list[str]:
    """Return the names of a function's arguments without ``self``, read from its code."""
    names = list(func.__code__.co_varnames[: func.__code__.co_argcount])
    return names[1:] if names[:1] == ["self"] else names


# ----- opendelta.utils.model_md5 -----


def gen_model_hash(model: nn.Module, with_parameters: bool = True) -> str:
    """Return OpenDelta's hash of a model: of its text, and of its parameters."""
    if with_parameters:
        return opendelta_hash(model)
    return hashlib.md5(re.sub(r"[\n \t]", "", str(model)).encode(), usedforsecurity=False).hexdigest()


def gen_parameter_hash(generator: Iterable[torch.Tensor], md5: Any = None) -> Any:
    """Add the bytes of tensors to an md5, by default a new one, and return it."""
    md5 = hashlib.md5(usedforsecurity=False) if md5 is None else md5
    for tensor in generator:
        md5.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return md5


# ----- opendelta.utils.cuda -----


def get_device(module: nn.Module | nn.Parameter) -> torch.device:
    """Return the device of a parameter, or of a module's first one; the CPU for a module without parameters."""
    parameters = iter([module]) if isinstance(module, nn.Parameter) else module.parameters()
    return next((p.device for p in parameters), torch.device("cpu"))


def get_dtype(module: nn.Module | nn.Parameter) -> torch.dtype:
    """Return the dtype of a parameter, or of a module's first one; float32 for a module without parameters."""
    parameters = iter([module]) if isinstance(module, nn.Parameter) else module.parameters()
    return next((p.dtype for p in parameters), torch.float32)
