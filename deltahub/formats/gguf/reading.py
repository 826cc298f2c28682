"""Reader for a LoRA in GGUF: a file of llama.cpp whose `general.type` is ``adapter``.

It gives the LoRA that llama.cpp computes: the scale is the file's alpha divided by the rank of the tensor, and 1 where the file has no
alpha or 0. Quantised tensors are expanded. The values are read tensor by tensor, after every name and shape was checked.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import CONVERTED, Checkpoint
from deltahub.checkpoint.config import check_document
from deltahub.checkpoint.gguf_header import MAGIC, Place, read_header
from deltahub.engine.filling import refuse_larger
from deltahub.engine.modules import module_at, own_modules
from deltahub.engine.shapes import linear_shape
from deltahub.engine.site import uncompiled
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files.atomic import regular, sha256_file
from deltahub.files.documents import shown
from deltahub.formats.gguf.architectures import EMBEDDINGS, Architecture, gguf_package
from deltahub.formats.peft.lora_delta import LowRank, lora_options
from deltahub.reference import Digest

SUFFIX: Final = ".gguf"
# Keys of the metadata that change no output: descriptions, and the texts that an adapter was trained with.
_INERT: Final = ("general.", "quantize.", "deltahub.", "adapter.lora.task_name", "adapter.lora.prompt_prefix")
_USED: Final = ("adapter.type", "adapter.lora.alpha")
_WAY_OUT: Final = "Load the adapter that it was converted from."
_ENDS: Final = ("lora_a", "lora_b")


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds files in GGUF."""
    return any(_begins(path) for path in folder.glob(f"*{SUFFIX}") if path.is_file())


def _begins(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(folder: Path, backbone: nn.Module) -> Checkpoint:
    """Read a LoRA in GGUF.

    Args:
        backbone: the model of the adapter.

    Raises:
        ConfigError: the file is something else, the adapter has no equivalent in a delta, or the package gguf is missing.
        CheckpointError: the file is damaged, or does not fit the backbone.
    """
    names = sorted(path.name for path in folder.glob(f"*{SUFFIX}") if path.is_file())
    if len(names) != 1:
        msg = f"{folder} holds {len(names)} files in GGUF: {', '.join(names[:3])}. Keep each adapter in a folder of its own."
        raise CheckpointError(msg)
    path = folder / names[0]
    refuse_larger(path, backbone)
    with regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        header = read_header(lambda start, end: _range(file, start, end), size, str(path))
        _check_fields(header.metadata, path)
        places = header.places(size, str(path))
        architecture = Architecture.of(backbone)
        if header.metadata.get("general.architecture") != architecture.name:
            msg = (
                f"{path} is for the architecture {shown(header.metadata.get('general.architecture'))} of llama.cpp, and this "
                f"{type(backbone).__name__} has {architecture.name!r}. Load its own backbone."
            )
            raise CheckpointError(msg)
        stored = [_Stored(entry.name, entry.dtype, entry.shape, places[entry.name]) for entry in header.tensors]
        pairs = [
            _Pair.of(weight, leaves, architecture, uncompiled(backbone))
            for weight, leaves in _by_weight(stored, path).items()
        ]
        alpha = header.metadata.get("adapter.lora.alpha", 0.0)
        _refuse_overlap(pairs, path)
        updates = {module: update for pair in pairs for module, update in pair.updates(file, alpha, architecture)}
    options, tensors = lora_options(dict(sorted(updates.items())), [name for name, _ in own_modules(backbone)])
    document = {
        "format_version": 1,
        "backbone_class": type(backbone).__name__,
        "common_structure": False,
        "exclude_modules": [],
        "unfrozen_modules": ["deltas"],
        **options,
    }
    check_document(document)
    parent = {"relation": CONVERTED, "digest": Digest.of_hex(sha256_file(path)[0]), "format": "gguf"}
    return Checkpoint(folder, document, None, tensors, parent)


def _check_fields(metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that is not a plain LoRA.

    Raises:
        ConfigError: the message names the field.
    """
    if metadata.get("general.type") != "adapter":
        msg = f"{path} is a whole model in GGUF (general.type={shown(metadata.get('general.type'))}); expected an adapter."
        raise ConfigError(msg)
    if metadata.get("adapter.type") != "lora":
        msg = f"{path} has adapter.type={shown(metadata.get('adapter.type'))}; only lora is supported. {_WAY_OUT}"
        raise ConfigError(msg)
    if "adapter.alora.invocation_tokens" in metadata:
        msg = (
            f"{path} is an aLoRA, which acts only after certain tokens, and no delta does that. Run it with llama.cpp."
        )
        raise ConfigError(msg)
    if not isinstance(alpha := metadata.get("adapter.lora.alpha", 0.0), float):
        msg = f"{path} has adapter.lora.alpha={shown(alpha)}; expected a float, as llama.cpp does. Convert the adapter again."
        raise ConfigError(msg)
    for key, value in metadata.items():
        if key not in _USED and not key.startswith(_INERT):
            msg = f"{path} has {key:.80}={shown(value)}: this field of an adapter is not supported. {_WAY_OUT}"
            raise ConfigError(msg)


@dataclass(frozen=True)
class _Stored:
    """A tensor of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: Place

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape as a matrix; GGUF may leave out outer dimensions of 1, or add some.

        Raises:
            CheckpointError: it is not a matrix.
        """
        *outer, rows, width = (1, 1, *self.shape)
        if {*outer} != {1}:
            msg = f"{self.name} has the shape {list(self.shape)}; expected a matrix, as for a linear layer. {_WAY_OUT}"
            raise CheckpointError(msg)
        return rows, width

    def read(self, file: BinaryIO) -> Tensor:
        """Read the values in float32.

        Raises:
            CheckpointError: the package gguf cannot expand this dtype.
        """
        gguf = gguf_package()
        file.seek(self.place.start)
        content = np.frombuffer(file.read(self.place.size), np.uint8).reshape(self.matrix[0], -1)
        try:
            values = gguf.quants.dequantize(content, gguf.GGMLQuantizationType(self.place.kind))
        except (NotImplementedError, ValueError) as error:
            msg = f"{self.name} has the dtype {self.dtype}, which cannot be read here. Expected F32, F16, BF16 or Q8_0: convert the adapter again."
            raise CheckpointError(msg) from error
        return torch.from_numpy(np.array(values, np.float32).reshape(self.matrix))


def _by_weight(stored: Iterable[_Stored], path: Path) -> dict[str, dict[str, _Stored]]:
    """Sort the tensors by the weight that they change.

    Raises:
        CheckpointError: one is not part of a LoRA, cannot be read, or one of a pair is missing.
    """
    pairs: dict[str, dict[str, _Stored]] = {}
    for tensor in stored:
        weight, dot, end = tensor.name.rpartition(".")
        if not dot or end not in _ENDS:
            msg = (
                f"{path} holds {tensor.name}, which llama.cpp does not apply: it is not an A or B of a LoRA. {_WAY_OUT}"
            )
            raise CheckpointError(msg)
        pairs.setdefault(weight, {})[end] = tensor
    for weight, pair in pairs.items():
        if missing := [end for end in _ENDS if end not in pair]:
            raise CheckpointError(
                f"{path} has no {weight}.{missing[0]}, and the other half of this pair. Fetch it again."
            )
    if not pairs:
        raise CheckpointError(f"{path} holds no tensor. Fetch it again.")
    return pairs


@dataclass(frozen=True)
class _Pair:
    """The update of a weight in GGUF.

    Attributes:
        down: A, transposed for embeddings.
        up: B.
        widths: the output width of each module whose rows it has, in their order.
        is_table: whether it is of embeddings.
    """

    down: _Stored
    up: _Stored
    widths: Mapping[str, int]
    is_table: bool

    @classmethod
    def of(cls, weight: str, pair: Mapping[str, _Stored], architecture: Architecture, backbone: nn.Module) -> _Pair:
        """Hold a pair against the backbone.

        Raises:
            CheckpointError: the backbone has no such weight, or one of another shape.
        """
        down, up = (pair[end] for end in _ENDS)
        modules = [architecture.module(part) for part in architecture.parts(weight)]
        shapes = {module: linear_shape(module, module_at(backbone, module)) for module in modules}
        widths = {module: n_out for module, (_, n_out) in shapes.items()}
        n_in, n_out, rank = next(iter(shapes.values()))[0], sum(widths.values()), up.matrix[1]
        is_table = weight == EMBEDDINGS
        for tensor, expected in ((down, (n_in, rank) if is_table else (rank, n_in)), (up, (n_out, rank))):
            if tensor.matrix != expected:
                msg = (
                    f"{tensor.name} is {list(tensor.matrix)}; expected {list(expected)}, by {modules[0]} of this backbone. Load its own "
                    "backbone, or convert the adapter again."
                )
                raise CheckpointError(msg)
        return cls(down, up, widths, is_table)

    def updates(self, file: BinaryIO, alpha: float, architecture: Architecture) -> Iterator[tuple[str, LowRank]]:
        """Read the update of each module, with its rows in the order of transformers."""
        down, up = self.down.read(file), self.up.read(file)
        scale = alpha / up.shape[1] if alpha else 1.0
        start = 0
        for module, n_out in self.widths.items():
            rows, start = up[start : start + n_out], start + n_out
            order = architecture.order(module, n_out)
            placed = rows.clone() if order is None else torch.empty_like(rows).index_copy_(0, order, rows)
            yield module, LowRank(down.T.contiguous() if self.is_table else down, placed, scale)


def _refuse_overlap(pairs: Iterable[_Pair], path: Path) -> None:
    """Refuse two updates of the same rows, one of them as a part of a fused weight.

    Raises:
        CheckpointError: the message names the module.
    """
    counts = Counter(module for pair in pairs for module in pair.widths)
    if twice := [module for module, count in counts.items() if count > 1]:
        raise CheckpointError(
            f"{path} changes {twice[0]} twice, once as a part of a fused weight. Convert the adapter again."
        )


def _range(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)
