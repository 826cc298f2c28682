"""OpenDelta's functions on names and hashes, and its class for common names (`opendelta.utils`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from deltahub.checkpoint.address import REGEX_MARK, matches_any
from deltahub.engine.structure.names import StructureMap
from deltahub.formats.opendelta.reading import opendelta_hash


class CommonStructureMap(StructureMap):
    """The common names of a backbone: `deltahub.CommonStructureMap`, with OpenDelta's way to make one."""

    @classmethod
    def load(cls, backbone_model: nn.Module, *options: Any, **more: Any) -> StructureMap:
        """Find the common names of a model; the options are kept for OpenDelta's signature."""
        return cls.of(backbone_model)


def superstring_in(str_a: str, list_b: Iterable[str]) -> bool:
    """Return whether a string is contained in one of the strings."""
    return any(str_a in str_b for str_b in list_b)


def is_child_key(str_a: str, list_b: Iterable[str]) -> bool:
    """Return whether a name is one of the names, or inside one of these modules."""
    return any(f"{str_a}.".startswith(f"{str_b}.") for str_b in list_b)


def endswith_in(str_a: str, list_b: Iterable[str]) -> bool:
    """Return whether the last parts of a name match one of the addresses; regular expressions begin with ``[r]``."""
    return matches_any(str_a, list_b)


def endswith_in_normal(str_a: str, list_b: Iterable[str]) -> bool:
    """Return whether the last parts of a name are one of the plain addresses."""
    return endswith_in(str_a, (str_b for str_b in list_b if not str_b.startswith(REGEX_MARK)))


def endswith_in_regex(str_a: str, list_b: Iterable[str]) -> bool:
    """Return whether the last parts of a name match one of the regular expressions, written without ``[r]``."""
    return endswith_in(str_a, (REGEX_MARK + str_b for str_b in list_b))


def gen_model_hash(model: nn.Module, with_parameters: bool = True) -> str:
    """Return OpenDelta's hash of a model: of its text, and of its parameters."""
    return opendelta_hash(model if with_parameters else nn.Module(), text=str(model))


def gen_parameter_hash(generator: Iterable[torch.Tensor], md5: Any = None) -> Any:
    """Add the bytes of tensors to an md5, by default a new one, and return it."""
    md5 = hashlib.md5(usedforsecurity=False) if md5 is None else md5
    for tensor in generator:
        md5.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return md5
