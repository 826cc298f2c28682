"""The tensors of a model in its folder, by the names that they have in the model: read one at a time, without loading the model.

A file may hold a shared tensor under any of its names, and a model with a head has one part more at the start of each name than the
model without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from deltahub.checkpoint.manifest import TensorEntry
from deltahub.checkpoint.safetensors_header import tensor_table
from deltahub.engine.fingerprint import backbone_tensors
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files.documents import parse


@dataclass(frozen=True)
class ModelFiles:
    """The safetensors files of a model.

    Attributes:
        folder: their folder.
        entries: each tensor in them by its name there.
        files: the file of each.
    """

    folder: Path
    entries: Mapping[str, TensorEntry]
    files: Mapping[str, Path]

    @classmethod
    def of(cls, folder: Path) -> ModelFiles:
        """Read the headers of all safetensors files in a folder.

        Raises:
            CheckpointError: there are none, or one cannot be read.
            ConfigError: the model is quantised.
        """
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            msg = f"{folder} holds no *.safetensors file; expected the folder of a model, as save_pretrained writes it."
            raise CheckpointError(msg)
        if "quantization_config" in _config(folder):
            msg = f"{folder} is a quantised model, whose weights are not plain numbers. Use the model before quantisation."
            raise ConfigError(msg)
        tables = {path: tensor_table(path) for path in paths}
        entries = {entry.name: entry for table in tables.values() for entry in table}
        return cls(folder, entries, {entry.name: path for path, table in tables.items() for entry in table})

    def read(self, name: str) -> Tensor:
        """Read a tensor by its name in the files; the file is mapped only while the tensor is used."""
        with safe_open(self.files[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def located(self, names: Mapping[str, Iterable[str]], prefix: str) -> dict[str, str]:
        """Return the names in the files of a model's tensors, as far as they are there.

        Args:
            names: the first name of each tensor in the model to all of its names.
            prefix: the part at the start of names that only a model with a head has, e.g. ``"bert"``; may be empty.
        """
        located: dict[str, str] = {}
        for first, aliases in names.items():
            candidates = [first, *aliases]
            candidates += [f"{prefix}.{name}" for name in candidates] if prefix else []
            candidates += [name.removeprefix(f"{prefix}.") for name in candidates[: len(candidates)] if prefix]
            if (name := next((one for one in candidates if one in self.entries), None)) is not None:
                located[first] = name
        return located


def names_of(model: nn.Module) -> dict[str, set[str]]:
    """Return the first name of each parameter and persistent buffer of a model, and all names of a shared one."""
    firsts = {id(tensor): name for name, tensor in backbone_tensors(model)}
    names: dict[str, set[str]] = {name: {name} for name in firsts.values()}
    for alias, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in firsts:
            names[firsts[id(parameter)]].add(alias)
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    for alias, source in tied.items():
        if source in names:
            names[source].add(alias)
    return names


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        document = parse(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
