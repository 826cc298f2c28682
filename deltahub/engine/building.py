"""Construction of a delta's insertions from its config: target modules, their widths, and new parameters.

Nothing here changes the backbone, so a refused config leaves it untouched.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from deltahub.checkpoint.address import ALL_LINEAR
from deltahub.checkpoint.config import DeltaConfig
from deltahub.engine.bypassed import is_bypassed, reader_of
from deltahub.engine.insertion import Insertion, acts_in
from deltahub.engine.modules import module_at
from deltahub.engine.offloading import device_of
from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.shapes import output_widths
from deltahub.engine.site import check_target
from deltahub.engine.structure.blocks import outside_blocks
from deltahub.engine.structure.names import StructureMap
from deltahub.engine.structure.targets import Target, targets_in, without_excluded
from deltahub.engine.weights import FusedInsertion, SomeRows
from deltahub.errors import ConfigError, TargetError
from deltahub.log import LOGGER

Like = Callable[[nn.Module], Tensor]  # module to a tensor with the dtype and device that its delta should have


class Method:
    """The method of a delta type: the modules it acts on, and the insertion that it puts there.

    Attributes:
        default_modified_modules: addresses used if a config has none.
        default_exclude_modules: the same for `exclude_modules`.
        default_unfrozen_modules: the same for `unfrozen_modules`.
        acts_on_projections: whether it acts on the q, k, v and proj of an `nn.MultiheadAttention`, which are not layers.
        addresses_each: how many addresses in a row mean one module: two where modified_modules are pairs.
        takes_parameters: whether an address may name a parameter that a module reads itself.
    """

    default_modified_modules: ClassVar[tuple[str, ...]] = ()
    default_exclude_modules: ClassVar[tuple[str, ...]] = ("lm_head",)
    default_unfrozen_modules: ClassVar[tuple[str, ...]] = ("deltas",)
    acts_on_projections: ClassVar[bool] = False
    addresses_each: ClassVar[int] = 1
    takes_parameters: ClassVar[bool] = False

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Return the modules to act on for the addressed modules; a method may refuse some, or choose layers inside them.

        Raises:
            TargetError: a module cannot hold this delta.
        """
        return targets

    @classmethod
    def plan(cls, backbone: nn.Module, config: Any) -> list[Target]:
        """Return the modules to act on, in backbone order: those that the config's addresses match.

        Raises:
            NoMatchError: an address matches nothing.
            TargetError: a module cannot hold this delta.
        """
        return addressed(cls, backbone, config)

    @classmethod
    def read_by_parent(cls, backbone: nn.Module, target: Target) -> Target | None:
        """Return where the method acts on the weight of a layer that is never called, but read; None if it cannot.

        Args:
            target: the layer.
        """
        return None

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: Any, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build the insertion of every target, by module name; by default each on its own with `new_insertion`.

        Args:
            like: returns, for a module, a tensor with the dtype and device for its delta.
        """
        return one_each(cls, backbone, config, targets, like)

    @classmethod
    def new_insertion(cls, config: Any, target: Target, width: int, like: Tensor) -> Insertion:
        """Build the insertion of a target.

        Args:
            width: size of the target's output, or of the addressed part.
            like: a tensor with the dtype and device for new parameters.
        """
        raise NotImplementedError

    @classmethod
    def as_saved(cls, config: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
        """Return the config and the tensors with which the delta is saved; a method may leave out what mattered only at the start.

        Args:
            tensors: all tensors of the delta by name.
        """
        return config, tensors


def refuse_unsupported(backend: str) -> None:
    """Refuse values of OpenDelta's `backend` argument that have no effect here.

    Raises:
        ConfigError: the value is not ``"hf"``.
    """
    if backend != "hf":
        msg = f"backend must be 'hf', got {backend!r}: any torch.nn.Module works with it."
        raise ConfigError(msg)


def complete_config(method: type[Method], config: DeltaConfig, backbone: nn.Module) -> DeltaConfig:
    """Return a config with the method's defaults and the backbone's name filled in, and other blocks than the chosen ones excluded.

    Raises:
        ConfigError: the backbone has no block of a chosen number.
    """

    def given(names: Sequence[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
        return default if names is None else tuple(names)

    left_out = given(config.exclude_modules, method.default_exclude_modules)
    if config.layers_to_transform is not None:
        left_out = tuple(dict.fromkeys((*left_out, *outside_blocks(backbone, config.layers_to_transform))))
    return replace(
        config,
        modified_modules=given(config.modified_modules, method.default_modified_modules),
        exclude_modules=left_out,
        layers_to_transform=None,
        unfrozen_modules=given(config.unfrozen_modules, method.default_unfrozen_modules),
        backbone_class=config.backbone_class or type(backbone).__name__,
        backbone_checkpoint_name=config.backbone_checkpoint_name or _checkpoint_name(backbone),
    )


def _checkpoint_name(backbone: nn.Module) -> str:
    """Return a model's name on the Hub if it came from there, else the last part of its folder: the rest is specific to this machine."""
    config = getattr(backbone, "config", None)
    origin = str(getattr(config, "_name_or_path", "") or "").rstrip("/")
    from_hub = isinstance(getattr(config, "_commit_hash", None), str)
    return origin if from_hub and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", origin) else origin.rpartition("/")[2]


def build(
    method: type[Method],
    backbone: nn.Module,
    config: DeltaConfig,
    *,
    empty: bool = False,
    dtype: torch.dtype | None = None,
) -> dict[str, Insertion]:
    """Create the insertions of a delta for a backbone.

    Args:
        config: as returned by `complete_config`.
        empty: create them on the meta device, to be filled from a checkpoint.
        dtype: dtype of their parameters; by default float32, or the layer's dtype if it is wider.

    Returns:
        Real module name to insertion, in the order of the backbone.

    Raises:
        NoMatchError: an address matches nothing.
        TargetError: a module cannot hold this delta.
        ConfigError: parameters cannot be trained in `dtype`.
    """
    if dtype is not None:
        check_dtype(dtype)
    if empty and config.modified_modules == () and method.default_modified_modules:
        return {}  # the checkpoint has only tensors of the backbone
    targets = method.plan(backbone, config)
    for target in targets:
        check_target(target.name, target.module)

    @cache
    def empty_of(precision: torch.dtype, device: torch.device | str) -> Tensor:
        return torch.empty(0, dtype=precision, device=device)

    def like(module: nn.Module) -> Tensor:
        # In half precision a small learning rate would not move a parameter at all.
        precision = dtype or torch.promote_types(_precision(module, backbone), torch.float32)
        return empty_of(precision, "meta" if empty else device_of(module, backbone))

    insertions = dict(method.new_insertions(backbone, config, targets, like))
    if not (silent := _silent(backbone, insertions)):
        return _with_strength(insertions, config.strength)
    read = _read_by_parents(method, backbone, config, silent, targets)
    targets = [read.get(target.name, target) for target in targets if target.name not in silent or target.name in read]
    if unread := [address for address in silent if address not in read]:
        LOGGER.log(
            logging.INFO if empty else logging.WARNING,
            "Left out, as they are never called (their parents read their weights themselves): %s",
            ", ".join(unread),
        )
    insertions = dict(method.new_insertions(backbone, config, targets, like))
    return _with_strength(insertions, config.strength)


def _with_strength(insertions: dict[str, Insertion], strength: float) -> dict[str, Insertion]:
    for insertion in insertions.values() if strength != 1 else ():
        insertion.check_strength(strength)
        insertion.set_strength(strength)
    return insertions


def _silent(backbone: nn.Module, insertions: Mapping[str, Insertion]) -> list[str]:
    """Return the addresses of insertions that act on calls of a module that is never called."""
    return [
        address
        for address, insertion in insertions.items()
        if any(acts_in(insertion, how) for how in ("before", "after", "substitute")) and is_bypassed(backbone, address)
    ]


def _read_by_parents(
    method: type[Method], backbone: nn.Module, config: DeltaConfig, silent: Sequence[str], targets: Sequence[Target]
) -> dict[str, Target]:
    """Return, for modules that are never called and that the user addressed, where the method acts on their weights instead.

    A default or an enclosing module does not address them, unless no other module is left, or modules belong together in pairs.

    Raises:
        TargetError: it cannot act on the weight of such a module.
    """
    explicit_patterns = [
        pattern
        for pattern in config.modified_modules or ()
        if pattern not in (*method.default_modified_modules, ALL_LINEAR)
    ]
    structure, common = StructureMap.of(backbone), config.common_structure
    named = (
        {found.name for found in targets_in(structure, explicit_patterns, (), common, with_parameters=True)}
        if explicit_patterns
        else set()
    )
    if method.addresses_each > 1 or len(silent) == len({target.name for target in targets}):
        named.update(silent)
    read: dict[str, Target] = {}
    for target in targets:
        address = target.name
        if address not in silent or address not in named:
            continue
        if (elsewhere := method.read_by_parent(backbone, target)) is not None:
            read[address] = elsewhere
        else:
            parent = type(module_at(backbone, address.rpartition(".")[0])).__name__
            by_lora = (
                isinstance(target.module, nn.Linear) and not method.takes_parameters and reader_of(backbone, address)
            )
            remedy = (
                "a LoRA without options of its own (LoraModel) acts on that weight. Use one there, or leave"
                if by_lora
                else "Leave"
            )
            msg = (
                f"{address} is never called: {parent} reads its weight itself, so a delta there would never act"
                f"{'; ' if by_lora else '. '}{remedy} it out (exclude_modules=[{address!r}])."
            )
            raise TargetError(msg)
    return read


def addressed(method: type[Method], backbone: nn.Module, config: DeltaConfig) -> list[Target]:
    """Return the modules that a config addresses for a method.

    Raises:
        NoMatchError: an address matches nothing.
        TargetError: a module cannot hold this delta.
    """
    structure = StructureMap.of(backbone)
    patterns, exclude = config.modified_modules or (), config.exclude_modules or ()
    targets = targets_in(
        structure,
        patterns,
        exclude,
        config.common_structure,
        {*method.default_modified_modules},
        projections=method.acts_on_projections,
        with_parameters=method.takes_parameters,
    )
    chosen = method.choose(targets)
    is_known = {*map(id, chosen)} <= {*map(id, targets)}  # whether none was chosen inside an addressed module
    return chosen if is_known else without_excluded(structure, chosen, exclude)


def one_each(
    method: type[Method], backbone: nn.Module, config: DeltaConfig, targets: Sequence[Target], like: Like
) -> dict[str, Insertion]:
    """Create one insertion for each target, or for each addressed part of a fused target, of the width of its output."""
    widths = output_widths(backbone, {target.name: target.module for target in targets})
    return {target.name: _new(method, config, target, widths[target.name], like(target.module)) for target in targets}


def _new(method: type[Method], config: DeltaConfig, target: Target, width: int, like: Tensor) -> Insertion:
    if not target.parts:
        return method.new_insertion(config, target, width, like)
    shares = {part: Target(target.name, cast("nn.Module", SomeRows(target.module, part))) for part in target.parts}
    return FusedInsertion({p: method.new_insertion(config, share, p.width(width), like) for p, share in shares.items()})


def check_dtype(dtype: object) -> None:
    """Refuse dtypes that a delta's parameters cannot have.

    Raises:
        ConfigError: it is not a dtype of floating-point numbers of 16 bits or more.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        msg = f"dtype must be torch.float32, torch.bfloat16, torch.float16 or torch.float64, got {dtype!r}."
        raise ConfigError(msg)


def _precision(module: nn.Module, backbone: nn.Module) -> torch.dtype:
    """Return the dtype that a module computes in: that of its first floating-point parameter, one inside it, or one of the backbone."""
    if (coded := quantised(module)) is not None:
        return coded.compute_dtype
    for parameter in module._parameters.values():  # most have one of their own, which saves the walk
        if parameter is not None and parameter.is_floating_point():
            return parameter.dtype
    parameters = chain(module.parameters(), backbone.parameters())
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
