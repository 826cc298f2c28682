"""A delta's tensors without its config: one file, or a dict in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import tensors_in
from deltahub.checkpoint.safetensors_header import usable_bytes
from deltahub.engine.filling import check_fit, refuse_larger
from deltahub.engine.guards import refuse_merged
from deltahub.engine.sharding import assign, done_once, whole
from deltahub.engine.site import is_delta_name
from deltahub.files.atomic import regular, staging, storage_errors, sync_file, sync_folders

if TYPE_CHECKING:
    from deltahub.engine.ledger import Entry, Ledger

Saver = Callable[[Mapping[str, Tensor], Path], None]


def save_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as a safetensors file; the default `save_function`."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _read(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; the default `load_func`."""
    with regular(path) as file:
        return tensors_in(usable_bytes(file, str(path)), str(path))


class TensorFileMixin:
    """Methods of delta models for saving and loading a delta's tensors."""

    backbone_model: nn.Module

    if TYPE_CHECKING:
        _entry: Entry

        @property
        def _ledger(self) -> Ledger: ...
        def state_dict(self) -> dict[str, Tensor]: ...  # noqa: D102

    def _gathered(self, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        tensors = self.state_dict() if state_dict is None else state_dict
        return {name: whole(tensor) for name, tensor in sorted(tensors.items())}  # in the same order on every process

    def save_checkpoint(
        self,
        path: str | os.PathLike[str],
        save_func: Saver = save_safetensors,
        state_dict: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Save only the tensors, atomically to one file; missing folders are created.

        Args:
            path: the file.
            save_func: writes tensors to a path.
            state_dict: the tensors, by default the delta's own `state_dict()`.
        """
        target, tensors = Path(path), self._gathered(state_dict)

        def write() -> None:
            with storage_errors("Saving tensors", target.parent), staging(target.parent) as stage:
                save_func(tensors, stage / target.name)
                sync_file(stage / target.name)
                os.replace(stage / target.name, target)
                sync_folders([target.parent])

        done_once(self.backbone_model, write)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        load_func: Callable[[str], Mapping[str, Tensor]] | None = None,
        backbone_model: nn.Module | None = None,
    ) -> None:
        """Load tensors saved by `save_checkpoint` into this delta, strictly.

        Args:
            path: the file.
            load_func: reads tensors from a path, by default as safetensors.
            backbone_model: kept for OpenDelta's signature; the delta's own backbone is used.

        Raises:
            CheckpointError: the tensors do not fit; nothing was changed.
        """
        if load_func is None:
            refuse_larger(Path(path), self.backbone_model)
        self.load_state_dict(load_func(os.fspath(path)) if load_func else _read(Path(path)))

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into this delta, strictly.

        Args:
            tensors: a result of `state_dict()`, from here or elsewhere.

        Raises:
            CheckpointError: the tensors do not fit; nothing was changed.
            MergeError: the delta is merged into the backbone's weights, which would not follow.
        """
        refuse_merged(self.backbone_model)
        current = self.state_dict()
        check_fit(current, tensors)
        own = {name: tensor for name, tensor in tensors.items() if is_delta_name(name)}
        for name, tensor in own.items():
            assign(current[name], tensor)  # detached views of the live parameters
        self._ledger.replace(
            self.backbone_model,
            self._entry,
            {name: tensor for name, tensor in tensors.items() if name not in own},
        )
