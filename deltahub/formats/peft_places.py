"""What has to be known of a backbone to write a delta in the format of others: shapes of its layers, parts of fused ones, values.

Shapes come from the delta's own record of its backbone. Parts and values need the backbone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
import xxhash
from torch import Tensor

from deltahub.checkpoint import Checkpoint
from deltahub.engine.site import is_delta_name
from deltahub.engine.skeleton import skeleton
from deltahub.engine.structure.layouts import Part
from deltahub.engine.structure.names import StructureMap
from deltahub.errors import CheckpointError, ConfigError, FingerprintMismatch
from deltahub.fitting import backbone_folder


@dataclass(frozen=True)
class Places:
    """A backbone as far as it is known.

    Attributes:
        shapes: of its tensors, by name.
        leaves: hash of each tensor that the delta leaves alone.
        named: the backbone as it was given; empty if it was not.
        folder: where it lies; None if it was not given.
    """

    shapes: Mapping[str, tuple[int, ...]]
    leaves: Mapping[str, str]
    named: str = ""
    folder: Path | None = None
    _parts: dict[str, dict[str, Part]] = field(default_factory=dict)

    @classmethod
    def of(cls, saved: Checkpoint, backbone: str | None) -> Places:
        """What a checkpoint and, if given, its backbone tell.

        Raises:
            CheckpointError: the backbone is not found.
        """
        leaves = saved.fingerprint.leaves if saved.fingerprint else ()
        own = {name: tuple(tensor.shape) for name, tensor in saved.tensors.items() if not is_delta_name(name)}
        shapes = {leaf.name: leaf.shape for leaf in leaves} | own
        folder = None if backbone is None else backbone_folder(backbone)
        named = "" if backbone is None or Path(backbone).expanduser().is_dir() else backbone
        return cls(shapes, {leaf.name: leaf.hash for leaf in leaves}, named, folder)

    @property
    def modules(self) -> set[str]:
        """Every module with tensors of its own."""
        return {name.rpartition(".")[0] for name in self.shapes}

    def widths(self, module: str) -> tuple[int, int] | None:
        """The input and output width of a linear layer or transformers' Conv1D; None where its weight is kept in another form."""
        shape, bias = self.shapes.get(f"{module}.weight", ()), self.shapes.get(f"{module}.bias")
        if len(shape) != 2 or (bias is not None and bias[0] not in shape):
            return None  # quantised, say
        rows, columns = shape
        return (rows, columns) if bias is not None and bias[0] != rows else (columns, rows)

    def is_turned(self, module: str) -> bool:
        """Whether a layer is a Conv1D, which keeps its weight as ``(n_in, n_out)`` and always has a bias; a square one does not say."""
        widths = self.widths(module)
        return widths is not None and widths == self.shapes[f"{module}.weight"] != widths[::-1]

    def is_embedding(self, module: str, n_in: int, n_out: int) -> bool:
        """Whether a layer that a delta takes to map `n_in` to `n_out` is an embedding: its weight is ``(n_in, n_out)``, without a bias."""
        return (
            self.shapes.get(f"{module}.weight") == (n_in, n_out) != (n_out, n_in)
            and f"{module}.bias" not in self.shapes
        )

    def parts(self, module: str, labels: Collection[str]) -> dict[str, Part]:
        """The parts of a fused layer, by label.

        Raises:
            ConfigError: no backbone was given.
            CheckpointError: the backbone given has no such parts.
        """
        if self.folder is None:
            msg = (
                f"The delta acts on the {', '.join(sorted(labels))} rows of {module} alone, and only the backbone tells which rows "
                "these are. Pass its folder or model id: backbone=... in Python, --backbone on the command line."
            )
            raise ConfigError(msg)
        if not self._parts:
            structure = StructureMap.of(model := skeleton(self.folder))
            for name, _ in model.named_modules():
                self._parts[name] = {part.label: part for _, part in structure.variants(name) if part}
        found = self._parts.get(module, {})
        if missing := sorted(set(labels) - found.keys()):
            msg = (
                f"{module} of the backbone in {self.folder} has no {missing[0]} rows. Pass the backbone of this delta."
            )
            raise CheckpointError(msg)
        return found

    def value(self, name: str) -> Tensor:
        """A tensor of the backbone.

        Raises:
            ConfigError: no backbone was given.
            CheckpointError: it has no such tensor in its safetensors files.
            FingerprintMismatch: it is another one than the delta was trained on.
        """
        if self.folder is None:
            msg = (
                f"PEFT keeps {name} as a whole, and the delta what is added to the backbone's. Pass the backbone's folder or model "
                "id: backbone=... in Python, --backbone on the command line."
            )
            raise ConfigError(msg)
        for path in sorted(self.folder.glob("*.safetensors")):
            with safetensors.safe_open(path, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118  (no dict)
                    tensor: Tensor = file.get_tensor(name)
                    self._check(name, tensor)
                    return tensor
        msg = f"No *.safetensors file in {self.folder} holds {name}. Pass the backbone of this delta, saved with its head."
        raise CheckpointError(msg)

    def _check(self, name: str, tensor: Tensor) -> None:
        found = xxhash.xxh3_128_hexdigest(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if (expected := self.leaves.get(name, found)) != found:
            raise FingerprintMismatch("same structure, other weights", f"{name} has other values", expected, found)
