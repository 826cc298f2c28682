"""The values of a backbone's tensors, read one by one if its files use the model's names, else by loading the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
import xxhash
from torch import Tensor, nn

from deltahub.checkpoint.backbone_record import Leaf
from deltahub.errors import CheckpointError, FingerprintMismatch


@dataclass(frozen=True)
class Values:
    """Tensors by name.

    Attributes:
        leaves: the record of each tensor that the delta does not change.
        trained: the delta's values for the other tensors.
        folder: the folder of the backbone; None if it was not given as a folder.
        model: the backbone, without values if there is a folder.
        exact: whether values must be those of the record.
    """

    leaves: Mapping[str, Leaf]
    trained: Mapping[str, Tensor]
    folder: Path | None
    model: nn.Module | None
    exact: bool = True

    def of(self, name: str, names: Collection[str]) -> Tensor:
        """Read a tensor, in the precision in which the delta was trained on it.

        Args:
            name: the name to use in messages.
            names: all names of the tensor.

        Raises:
            CheckpointError: the backbone has no such tensor.
            FingerprintMismatch: the tensor differs from the one the delta was trained on.
        """
        for key in names:
            if key in self.trained:
                return self.trained[key]
        value = self.find(names)
        if value is None:
            msg = (
                f"The backbone in {self.folder} holds no {name}. Pass the backbone of this delta, saved with its head."
            )
            raise CheckpointError(msg)
        leaf = next((self.leaves[key] for key in names if key in self.leaves), None)
        return value if leaf is None else _checked(name, value, leaf, exact=self.exact)

    def find(self, names: Collection[str]) -> Tensor | None:
        """Read the backbone's own value of a tensor with these names; None if it has none."""
        value = next((tensor for key in sorted(names) if (tensor := self._read(key)) is not None), None)
        return (
            next((self._loaded[key] for key in sorted(names) if key in self._loaded), None) if value is None else value
        )

    def _read(self, name: str) -> Tensor | None:
        """Read a tensor from the given model, or from the file with a tensor of that name."""
        if self.folder is None:
            live = self._live.get(name)
            return None if live is None else live.detach().cpu()
        if name not in self._files:
            return None
        with safetensors.safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The file of each tensor in the folder."""
        found: dict[str, Path] = {}
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder else ():
            with safetensors.safe_open(path, framework="pt") as file:
                found = {**dict.fromkeys(file.keys(), path), **found}
        return found

    @cached_property
    def _live(self) -> dict[str, Tensor]:
        assert self.model is not None
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    @cached_property
    def _loaded(self) -> dict[str, Tensor]:
        """The backbone as loaded by transformers, which maps names of old releases; without tensors missing from its files."""
        load: Any = getattr(type(self.model), "from_pretrained", None)
        if self.folder is None or load is None:
            return {}
        options = {"dtype": "auto", "local_files_only": True, "ignore_mismatched_sizes": True}
        try:
            model, report = load(self.folder, output_loading_info=True, **options)
        except (OSError, ValueError, RuntimeError) as error:
            msg = f"The weights of the backbone in {self.folder} cannot be loaded: {error}"
            raise CheckpointError(msg) from error
        fresh = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
        return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in fresh}


def _checked(name: str, tensor: Tensor, leaf: Leaf, *, exact: bool) -> Tensor:
    """Return a tensor in the precision of its record.

    Raises:
        FingerprintMismatch: its shape differs, or with `exact` its values.
    """
    dtype = getattr(torch, leaf.dtype, None)
    cast = tensor.to(dtype) if isinstance(dtype, torch.dtype) else tensor
    digest = xxhash.xxh3_128_hexdigest(cast.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if tuple(cast.shape) != tuple(leaf.shape) or (exact and digest != leaf.hash):
        raise FingerprintMismatch("same structure, other weights", f"{name} has other values", leaf.hash, digest)
    return cast
