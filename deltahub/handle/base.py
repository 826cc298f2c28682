"""DeltaBase: the handle of a delta on a backbone.

A handle is not a module: its parameters live in the backbone, each in the `deltas` child of the module it acts on.
`deltas_of(backbone)` recreates the handles, on the backbone or on any copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.engine.building import Method, build, complete_config, refuse_unsupported
from deltahub.engine.guards import check_name, refuse_closed
from deltahub.engine.insertion import Insertion
from deltahub.engine.ledger import Entry, free_name, ledgers_in
from deltahub.engine.modules import modules_by_name
from deltahub.engine.site import uncompiled
from deltahub.engine.structure.blocks import check_blocks
from deltahub.errors import ConfigError
from deltahub.formats.writing import check_target
from deltahub.handle import exporting, freezing, low_rank, report, switching
from deltahub.handle.attachment import handle_of
from deltahub.handle.exporting import Exported
from deltahub.handle.loading import load
from deltahub.handle.low_rank import LoraConversion
from deltahub.handle.named_tensors import named_tensors
from deltahub.handle.parameter_groups import parameter_groups
from deltahub.handle.saving import SaveLoadMixin
from deltahub.handle.types import class_for, delta_classes, loading_class, register

__all__ = ["DeltaBase", "class_for", "delta_classes", "deltas_of"]


class DeltaBase(SaveLoadMixin, Method):
    """The base class of all delta types; a subclass needs a config class and `new_insertion`.

    A subclass may override, and everything here uses, the attributes and class methods of `Method`, `delta_type` and `config_class`,
    and the methods `attach`, `detach`, `check_places` and `state_dict`, which must call the base class's. `remove` calls `detach`;
    saving calls `check_places` and `state_dict`; attaching, detaching and merging call `check_places`. Loading and `deltas_of` do
    not call `__init__`. docs/extending.md shows a whole method.

    Args:
        backbone_model: the model to modify. Its own parameters keep their names, values and places.
        config: where the delta is inserted and how it is built.
        name: the delta's name on this backbone; by default its type, with a number if that is taken.
        interactive_modify: True, or a local port, to choose the modules on a web page; the call waits for the choice.
        backend: kept for OpenDelta's signature; only ``"hf"``.
        insertions: existing insertions by module name, used instead of new ones.
        dtype: dtype of new parameters; by default float32, or the layer's dtype if wider. ``backbone_model.dtype`` halves their
            memory on a backbone in half precision. A layer's output keeps the layer's dtype in any case.

    Raises:
        NoMatchError: an address matches nothing.
        TargetError: a module cannot hold this delta.
        ConfigError: an option is invalid.
        NothingChosenError: the page for choosing modules was closed or cancelled.
    """

    delta_type: ClassVar[str] = ""
    config_class: ClassVar[type[DeltaConfig]] = DeltaConfig

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.delta_type:
            register(cls)

    def __init__(
        self,
        backbone_model: nn.Module,
        config: DeltaConfig,
        *,
        name: str | None = None,
        interactive_modify: bool | int = False,
        backend: str = "hf",
        insertions: Mapping[str, Insertion] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        refuse_unsupported(backend)
        if not isinstance(given := cast("Any", backbone_model), nn.Module):
            msg = f"backbone_model must be a torch.nn.Module, got {given!r:.80}."
            raise ConfigError(msg)
        modules = modules_by_name(backbone_model)
        refuse_closed(modules)
        if name is None:
            name = free_name(modules, self.delta_type or type(self).__name__)
        else:
            check_name(modules, name)
        if interactive_modify is not False:
            from deltahub.picker.choosing import config_chosen  # imported late: few calls need this server

            config = config_chosen(type(self), backbone_model, config, interactive_modify)
        blocks = config.layers_to_transform
        config = complete_config(type(self), config, backbone_model)
        if insertions is None:
            insertions = build(type(self), backbone_model, config, dtype=dtype)
            check_blocks(blocks, insertions)
        super().__init__(backbone_model, Entry(name, type(self), config, dict(insertions)))
        switching.add(backbone_model, self._entry)

    # ----- construction -----

    @classmethod
    def from_config(
        cls,
        config: DeltaConfig | Mapping[str, Any],
        backbone_model: nn.Module,
        *,
        name: str | None = None,
        insertions: Mapping[str, Insertion] | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """Put a delta of this type on a backbone.

        Args:
            config: a config, or its JSON form.
            insertions: existing insertions by module name, used instead of new ones.
            dtype: dtype of new parameters, as for the class.
            options: options that override those of `config`.

        Raises:
            ConfigError: the config is for another type, an option is unknown, or a value is invalid.
        """
        document = config.to_dict() if isinstance(config, DeltaConfig) else config
        delta = cls.__new__(cls)
        own_config = cls.config_class.from_dict(document, **options)
        DeltaBase.__init__(delta, backbone_model, own_config, name=name, insertions=insertions, dtype=dtype)
        return delta

    @classmethod
    def from_finetuned(
        cls,
        finetuned_delta_path: str | os.PathLike[str],
        backbone_model: nn.Module,
        delta_config: DeltaConfig | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        *model_args: Any,
        force_download: bool = False,
        check_hash: bool | str = True,
        local_files_only: bool = False,
        allow_pickle: bool = False,
        name: str | None = None,
        dtype: torch.dtype | None = None,
        check_probe: bool = False,
        **options: Any,
    ) -> Self:
        """Put a saved delta on a backbone, which must be the one that it was trained on.

        Order: find, check every byte, check the config, check the backbone, plan every insertion, then insert and fill.
        A refusal leaves the backbone unchanged. Afterwards the backbone is frozen except for the parameters of
        deltas, and in eval mode unless it carried a delta before, which may be in training. If `freeze_module` of another
        attached delta has chosen what trains, that stays so, and this one trains only once it is named.

        Args:
            finetuned_delta_path: a folder, a reference such as ``"DeltaHub/sst2-t5-base@champion"``, or a link.
            backbone_model: the model to put it on.
            delta_config: a config to use instead of the saved one.
            cache_dir: the cache for pulled deltas, if not the default one.
            state_dict: tensors to use instead of the saved ones.
            force_download: fetch it again even if it is in the cache.
            check_hash: True to require exactly the same backbone, ``"structure"`` to accept other values under the same names
                and shapes, ``"dequantised"`` to accept the same weights in another quantisation or precision, which are then
                compared, with a warning that says how far; False for no check.
            local_files_only: use only files on this machine.
            allow_pickle: whether OpenDelta's `pytorch_model.bin` may be read.
            name: the delta's name on the backbone.
            dtype: dtype of its parameters; by default that of the saved tensors, and float32 for PEFT's.
            check_probe: whether to run the backbone on the inputs that were saved with it, and compare the outputs.
            options: options that replace those of the config.

        Raises:
            NotFoundError: no source has it.
            ProbeError: it does not give the outputs that it gave when it was saved; it is removed again.
            IntegrityError: its bytes are not the ones that were saved or published.
            FingerprintMismatch: the backbone is another one.
            CheckpointError: its tensors do not fit.
            ConfigError: a value in its config, or an option given here, is invalid.
        """
        delta: Self = load(
            cls._class_for,
            finetuned_delta_path,
            backbone_model,
            *model_args,
            config=delta_config,
            tensors=state_dict,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            check_hash=check_hash,
            allow_pickle=allow_pickle,
            name=name,
            dtype=dtype,
            check_probe=check_probe,
            options=options,
        )
        return delta

    @classmethod
    def _class_for(cls, delta_type: str, package: str | None) -> type[Self]:
        """Return the class that loads a delta of a type; overridden where old names of classes remain."""
        return loading_class(cls, delta_type, package)

    # ----- training -----

    def freeze_module(
        self, module: nn.Module | None = None, exclude: Sequence[str] | None = None, set_state_dict: bool = True
    ) -> None:
        """Freeze everything except the named parameters, other deltas included.

        By default, `state_dict()` of the backbone then holds only what is trainable.

        Args:
            module: freeze only inside this module of the backbone; names are then relative to it.
            exclude: addresses of parameters that stay trainable, real or common; ``"deltas"`` means the parameters of this delta,
                and ``"deltas.NAME"`` those of another one. By default the config's `unfrozen_modules`.
            set_state_dict: whether `state_dict()` of the backbone leaves out frozen tensors.

        Raises:
            NoMatchError: a name matches nothing.
            AddressError: `module` is not part of the backbone.
            ConfigError: the delta is detached, and more than deltas is to train; or a parameter cannot be trained: it is
                quantised, or offloaded.
            TargetError: the delta was removed.
            MergeError: deltas are merged.
            RouteError: a route is open.
        """
        freezing.freeze(self.backbone_model, self._entry, module, exclude, set_state_dict)

    def parameter_groups(self, lr: float, ratio: float = 16.0, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Return what trains in groups for an optimiser of torch, with the learning rates of LoRA+.

        The B of a LoRA on a linear layer or a convolution, and its bias, get ``ratio * lr``. Everything else gets `lr`: the A, the LoRA of
        embeddings, the magnitudes of DoRA, trained heads, and all parameters of other methods.

            optimizer = torch.optim.AdamW(delta.parameter_groups(lr=1e-4))

        Args:
            lr: the learning rate, more than 0.
            ratio: how much faster B trains; 1 for plain LoRA.
            weight_decay: at least 0; biases, norms and magnitudes are not decayed.

        Returns:
            Groups with ``params``, ``lr`` and ``weight_decay``; each trainable parameter is in one.

        Raises:
            ConfigError: a number is out of range, or nothing is trainable: call `freeze_module` before.
            TargetError: the delta was removed.
        """
        return parameter_groups(self.backbone_model, self._entry, lr, ratio, weight_decay)

    # ----- the delta in other forms -----

    def as_lora(
        self, rank: int | None = None, energy: float | None = None, *, name: str | None = None
    ) -> LoraConversion:
        """Convert the delta to a LoRA, which takes its place: this delta is detached, and stays on the backbone.

        Args:
            rank: the largest rank of each update.
            energy: the share of each update's squared norm to keep, instead of a rank or with one as its limit.
            name: the name of the LoRA on the backbone.

        Returns:
            The LoRA, and the rank and the relative error of each module.

        Raises:
            ConfigError: neither is given, or the delta does not change the weights of layers.
            MergeError: deltas are merged.
            RouteError: a route is open.
        """
        self.check_places()
        lora = class_for("lora")
        conversion = low_rank.converted(lora, self.backbone_model, self._entry, rank=rank, energy=energy, name=name)
        self.detach()
        return conversion

    def export(
        self,
        folder: str | os.PathLike[str],
        format: str = "peft",  # noqa: A002  (the name that users expect)
        *,
        verify: bool | Mapping[str, Tensor] = False,
        dequantise: torch.dtype | None = None,
    ) -> Exported:
        """Write the delta in a format of another library, or merged into its backbone.

        Args:
            folder: the folder to write: new, empty, or of the same format.
            format: ``"peft"``, ``"merged"`` (a model of transformers with the delta in its weights), ``"deltahub"`` or another one of
                docs/converting.md.
            verify: load what was written and compare the outputs before it is moved into place: True for random tokens, or the inputs of the
                backbone's forward by name.
            dequantise: with ``"merged"`` on a quantised backbone: write a plain model of this dtype, and compare its outputs with those of the
                quantised one.

        Returns:
            The folder, its size, and the comparison.

        Raises:
            ConfigError: the format cannot hold the delta; the message says why, and what to do instead.
            CheckpointError: the folder holds something else, or the delta to be verified has no effect.
            VerificationError: the outputs differ. Nothing was written.
            MergeError: deltas are merged.
            StorageError: the disk is full or not writable; no part is left.
        """
        self.check_places()
        target, form = Path(folder).expanduser(), exporting.format_of(format)
        check_target(target, form)
        source = replace(exporting.live(self.backbone_model, self._entry), dequantise=dequantise)
        return exporting.export(source, target, form, self.save_finetuned, verify)

    def named_tensors(self, format: str = "deltahub") -> Iterator[tuple[str, Tensor]]:  # noqa: A002  (as in export)
        """Iterate over the delta's tensors by the names that another program uses, for example vLLM's `load_weights`.

        Args:
            format: ``"deltahub"``: the names of a checkpoint. ``"peft"``: the names and shapes of an adapter of PEFT, as vLLM takes a LoRA.
                ``"merged"``: the backbone's own names, with the new values of those tensors that the delta changes, in the precision
                of the backbone; to send to a server that holds the bare backbone.

        Raises:
            ConfigError: the format is unknown or cannot hold the delta or its strength, or for ``"merged"`` another delta acts.
            MergeError: ``"merged"``, and the delta cannot be merged, or is merged already.
            TargetError: the delta was removed, or a module that holds it was replaced.
        """
        self.check_places()
        return iter(named_tensors(self.backbone_model, self._entry, self.state_dict, format).items())

    # ----- reports -----

    def get_statistics(self, module: nn.Module | None = None) -> dict[str, float]:
        """Count parameters, compute shares of the total, and measure CUDA memory in GB.

        Returns:
            total_parameters, trainable_parameters, trainable_ratio, delta_parameters, delta_ratio (fractions of the
            total), cudamem and maxcudamem.
        """
        return report.count(module if module is not None else self.backbone_model)

    def log(
        self,
        module: nn.Module | None = None,
        delta_ratio: bool = True,
        trainable_ratio: bool = True,
        visualization: bool = True,
        cuda_memory: bool = True,
    ) -> None:
        """Print the backbone with its deltas as a tree, and its statistics."""
        root = module if module is not None else self.backbone_model
        report.print_report(root, delta_ratio, trainable_ratio, visualization, cuda_memory)

    def probe(self, *args: Any, **kwargs: Any) -> list[str]:
        """Call the backbone once and return the modules of this delta that were not called, where it cannot act.

        A module is bypassed when code reads its weights directly, as T5 does with `shared`.

        Args:
            args: positional arguments for the backbone.
            kwargs: keyword arguments, e.g. ``**tokenizer("one sentence", return_tensors="pt")``.

        Returns:
            Real module names; empty if the delta acts at each of its modules.
        """
        return report.not_called(self.backbone_model, self.insertions, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Raise an error: a delta has no forward of its own.

        Raises:
            RuntimeError: always.
        """
        msg = "This is a delta model, which has no forward of its own. Call the backbone model instead."
        raise RuntimeError(msg)

    __call__ = forward

    def __repr__(self) -> str:
        state = "attached" if self.attached else "detached"
        count = sum(parameter.numel() for parameter in self.parameters())
        return f"<{type(self).__name__} {self.name!r}: {len(self.insertions)} modules, {count:,} parameters, {state}>"


def deltas_of(backbone: nn.Module) -> dict[str, DeltaBase]:
    """Return the handles of all deltas on a backbone and its parts, by name, in the order they were added.

    It also works on a copy of the backbone. If a delta on a part has the name of another one, the part's name comes first:
    ``"encoder.lora"``.
    """
    entries = [
        (e, part, address)
        for address, part, ledger in ledgers_in(modules_by_name(uncompiled(backbone)))
        for e in ledger.entries.values()
    ]
    handles: dict[str, DeltaBase] = {}
    for entry, part, address in sorted(entries, key=lambda item: item[0].serial):
        handles[f"{address}.{entry.name}" if entry.name in handles else entry.name] = handle_of(part, entry)
    return handles
